import ArgumentParser

@main
struct Subq: ParsableCommand {}
