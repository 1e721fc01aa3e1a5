// swift-tools-version: 6.2
import PackageDescription

/// Set in CI, where a warning fails the build; a user with a newer compiler should still get a binary.
let warningsAreErrors = Context.environment["SUBQUADRATIC_WARNINGS_AS_ERRORS"] == "1"

let swiftSettings: [SwiftSetting] =
    [
        .swiftLanguageMode(.v6),
        .enableUpcomingFeature("ExistentialAny"),
        .enableUpcomingFeature("MemberImportVisibility"),
    ] + (warningsAreErrors ? [.treatAllWarnings(as: .error)] : [])

let cxxSettings: [CXXSetting] = warningsAreErrors ? [.treatAllWarnings(as: .error)] : []

/// A room of the house: it may import only the rooms named here, all of which lie below it.
func room(_ name: String, _ dependencies: [Target.Dependency], exclude: [String] = []) -> Target {
    .target(name: name, dependencies: dependencies, exclude: exclude, swiftSettings: swiftSettings)
}

func tests(of name: String, _ more: [Target.Dependency] = [], resources: [Resource] = []) -> Target {
    .testTarget(
        name: "\(name)Tests", dependencies: [.byName(name: name)] + more, resources: resources,
        swiftSettings: swiftSettings)
}

let package = Package(
    name: "Subquadratic",
    platforms: [.macOS(.v14)],
    products: [
        .library(name: "Torch", targets: ["Torch", "TorchNN", "TorchOptimizers"]),
        .library(
            name: "Subquadratic", targets: ["SequenceMixers", "SequenceModels", "Datasets", "Training", "Inference"]),
        .executable(name: "subq", targets: ["subq"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", exact: "1.8.2"),
        .package(url: "https://github.com/apple/swift-protobuf", exact: "1.39.0"),
        .package(url: "https://github.com/jpsim/Yams", exact: "6.2.2"),
        .package(url: "https://github.com/swiftlang/swift-docc-plugin", exact: "1.5.0"),
    ],
    targets: [
        .systemLibrary(name: "CLibTorch", pkgConfig: "libtorch"),
        .systemLibrary(
            name: "CZlib", pkgConfig: "zlib", providers: [.apt(["zlib1g-dev"]), .brew(["zlib"])]),
        .target(name: "CTorch", dependencies: ["CLibTorch"], cxxSettings: cxxSettings),

        room("Torch", ["CTorch"]),
        room("TorchNN", ["Torch"]),
        room("TorchOptimizers", ["Torch", "TorchNN"]),
        room("SequenceMixers", ["Torch", "TorchNN"]),
        room("SequenceModels", ["Torch", "TorchNN", "SequenceMixers"]),
        room("Datasets", ["Torch", "CZlib"]),
        room("Conformance", ["Torch", "TorchNN", "TorchOptimizers", "SequenceMixers", "SequenceModels"]),
        room("Benchmarking", ["Torch", "TorchNN", "TorchOptimizers", "SequenceMixers", "SequenceModels", "Inference"]),
        room("Inference", ["Torch", "TorchNN", "SequenceMixers", "SequenceModels"]),
        room(
            "Training",
            [
                "Torch", "TorchNN", "TorchOptimizers", "SequenceMixers", "SequenceModels", "Datasets",
                .product(name: "Yams", package: "Yams"),
                .product(name: "SwiftProtobuf", package: "swift-protobuf"),
            ], exclude: ["TensorBoard/event.proto"]),
        .executableTarget(
            name: "subq",
            dependencies: [
                "Torch", "TorchNN", "SequenceMixers", "SequenceModels", "Datasets", "Conformance", "Inference",
                "Benchmarking",
                "Training",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ], swiftSettings: swiftSettings),

        tests(of: "Torch"),
        tests(of: "TorchNN", ["Torch"], resources: [.copy("Resources")]),
        tests(of: "TorchOptimizers", ["Torch", "TorchNN"], resources: [.copy("Resources")]),
        tests(of: "SequenceMixers", ["Torch", "TorchNN"]),
        tests(of: "SequenceModels", ["Torch", "TorchNN", "SequenceMixers"]),
        tests(of: "Datasets", ["Torch", "CZlib"], resources: [.copy("Resources/listops.tsv")]),
        tests(of: "Conformance", ["Torch", "SequenceMixers"], resources: [.copy("Golden")]),
        tests(of: "Inference", ["Torch", "TorchNN", "SequenceMixers", "SequenceModels"]),
        tests(
            of: "Training", ["Torch", "TorchNN", "TorchOptimizers", "SequenceMixers", "SequenceModels", "Datasets"],
            resources: [.copy("Resources")]),
        tests(of: "Benchmarking", ["Torch", "TorchNN", "SequenceMixers"]),
        .testTarget(name: "CommandTests", dependencies: ["subq"], swiftSettings: swiftSettings),
    ],
    cxxLanguageStandard: .cxx20
)
