import Foundation
import SequenceMixers
import Torch

extension MixerConfiguration {
    /// As a recipe would have it: a mechanism's name, and what stands beside it in the braces of a JSON object.
    init(_ name: String, json: String) throws {
        let text = "{\"name\": \"\(name)\"\(json.isEmpty ? "" : ", ")\(json)}"
        self = try JSONDecoder().decode(MixerConfiguration.self, from: Data(text.utf8))
    }
}

extension MixerContext {
    /// Of a layer of two heads that is small enough to be built for the sake of its settings.
    static func small(
        modelDim: Int = 8, causal: Bool, maximumLength: Int? = nil, layer: Int = 0, layers: Int = 1
    ) throws -> MixerContext {
        var context = try MixerContext(
            modelDim: modelDim, heads: 2, isCausal: causal, maximumLength: maximumLength,
            generator: RandomGenerator(seed: 1))
        (context.layer, context.layers) = (layer, layers)
        return context
    }
}
