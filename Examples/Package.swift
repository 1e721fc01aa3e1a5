// swift-tools-version: 6.2
import PackageDescription

/// Where Subquadratic comes from. A package of yours names the repository and a version here; these examples take
/// the repository around them, at its current commit and through git, so that they see what a user sees.
let enclosing = Context.packageDirectory.split(separator: "/").dropLast().map { "/" + $0 }.joined()
let url = Context.environment["SUBQUADRATIC_URL"] ?? enclosing
let revision = Context.environment["SUBQUADRATIC_REVISION"] ?? Context.gitInformation?.currentCommit ?? "main"

/// SwiftPM calls a package by the last part of its address.
let subquadratic: String = {
    let name = url.split(separator: "/").last.map(String.init) ?? url
    return name.hasSuffix(".git") ? String(name.dropLast(4)) : name
}()

let package = Package(
    name: "Examples",
    platforms: [.macOS(.v14)],
    dependencies: [.package(url: url, revision: revision)],
    targets: [
        .executableTarget(
            name: "UseTorch",
            dependencies: [
                .product(name: "Torch", package: subquadratic), .product(name: "Subquadratic", package: subquadratic),
            ])
    ]
)
