import Foundation
import SequenceModels
import Testing
import Torch
import TorchNN

@testable import Training

/// The experiments of `Recipes/`: each is one that can be run, and so is each variant that its comments name.
struct RecipeFilesTests {
    static let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .appendingPathComponent("../../Recipes").standardizedFileURL
    static let names = ((try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? [])
        .filter { $0.hasSuffix(".yaml") }.sorted()

    @Test func thereAreSome() { #expect(Self.names.count >= 8) }

    @Test(arguments: names) func canBeBuilt(name: String) throws {
        let url = Self.folder.appendingPathComponent(name)
        for override in [nil] + (try variants(url)) {
            let recipe = try Recipe(contentsOf: url, overrides: override.map { [$0] } ?? [])
            #expect(recipe.name == url.deletingPathExtension().lastPathComponent)
            var description = try recipe.modelDescription()
            try description.validate()
            // One layer of a smaller model says as much as all of them.
            description.model.layers = 1
            description.maximumLength = min(description.maximumLength, 64)
            let model = try description.build(using: RandomGenerator(seed: 0))
            #expect(model.module.parameterCount() > 0)
            // What a run directory holds must be the same recipe again.
            #expect(try Recipe(yaml: recipe.yaml(), name: name) == recipe)
        }
    }

    /// Overrides such as `model.mixer='{name: linear}'` in the comments.
    private func variants(_ url: URL) throws -> [String] {
        let comments = try String(contentsOf: url, encoding: .utf8).split(separator: "\n")
            .filter { $0.hasPrefix("#") }.map { $0.dropFirst().trimmingCharacters(in: .whitespaces) }
        return comments.joined(separator: " ").matches(of: /(model\.[a-z]+)='(\{[^}]*\})'/).map {
            "\($0.output.1)=\($0.output.2)"
        }
    }
}
