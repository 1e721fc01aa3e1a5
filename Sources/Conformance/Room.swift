// Room: Conformance
