import Foundation
import Testing
import Torch

/// PyTorch's numbers; the README beside them has the program that made them.
struct Golden {
    private struct Entry: Decodable {
        let shape: [Int]
        let values: [Double]
    }

    private let entries: [String: Entry]

    init() throws {
        let url = try #require(Bundle.module.url(forResource: "Resources/layers", withExtension: "json"))
        entries = try JSONDecoder().decode([String: Entry].self, from: Data(contentsOf: url))
    }

    func tensor(_ name: String) throws -> Tensor {
        let entry = try #require(entries[name], "no golden tensor \(name)")
        return Tensor(entry.values, shape: entry.shape)
    }

    /// The names below `prefix` that start with `start`, without both.
    func names(_ prefix: String, startingWith start: String) -> [String] {
        entries.keys.filter { $0.hasPrefix("\(prefix).\(start)") }.map {
            String($0.dropFirst(prefix.count + start.count + 1))
        }
    }
}

func expectClose(
    _ found: Tensor, _ expected: Tensor, tolerance: Double = 1e-12, _ what: String = "",
    sourceLocation: SourceLocation = #_sourceLocation
) {
    #expect(found.shape == expected.shape, "\(what)", sourceLocation: sourceLocation)
    guard found.shape == expected.shape else { return }
    let error = found.relativeError(to: expected)
    #expect(error <= tolerance, "\(what): relative error \(error)", sourceLocation: sourceLocation)
}

/// The message with which `body` would have ended the program.
func misuse(_ body: () -> Void) -> String? {
    do {
        try withTorchErrors(body)
        return nil
    } catch {
        return "\(error)"
    }
}
