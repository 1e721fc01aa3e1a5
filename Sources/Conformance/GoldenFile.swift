import Foundation
import SequenceMixers
import Torch

/// A golden file in memory: what it describes, and its tensors in float64.
struct GoldenFile {
    let system: String
    let variant: String
    private let settings: [String: GoldenValue]
    private let tensors: [String: Tensor]

    init(_ url: URL) throws {
        let file = try SafetensorsFile(url)
        func text(_ key: String) throws -> String {
            guard let value = file.metadata[key] else { throw ConformanceError("the metadata has no '\(key)'") }
            return value
        }
        system = try text("system")
        variant = try text("variant")
        do {
            settings = try JSONDecoder().decode([String: GoldenValue].self, from: Data(try text("config").utf8))
        } catch let error as DecodingError {
            throw ConformanceError("the metadata's 'config' is not a JSON object (\(error.localizedDescription))")
        }
        tensors = try file.tensors()
    }

    /// The case in the element type that a comparison runs in. Expected tensors stay float64.
    func golden(_ dtype: DType) throws -> GoldenCase {
        let expected = ["out", "grad.", "final_state."]
        let converted = tensors.map { name, tensor in
            let isExpected = expected.contains { name == $0 || ($0.hasSuffix(".") && name.hasPrefix($0)) }
            return (name, isExpected || !tensor.dtype.isFloatingPoint ? tensor : tensor.to(dtype))
        }
        return GoldenCase(
            system: system, variant: variant, settings: GoldenSettings(settings),
            tensors: Dictionary(uniqueKeysWithValues: converted))
    }
}
