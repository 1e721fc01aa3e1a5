import Foundation
import Testing
import Torch
import TorchNN

/// PyTorch's numbers; the README beside them has the program that made them.
struct Golden: Decodable {
    struct Numbers: Decodable {
        let shape: [Int]
        let values: [Double]

        var tensor: Tensor { Tensor(values, shape: shape) }
    }

    struct Clipped: Decodable {
        let norm: Double
        let gradients: [String: Numbers]
    }

    /// The parameters before the first step.
    let start: [String: Numbers]
    /// The gradients of each step; a parameter that is not there has none.
    let gradients: [[String: Numbers]]
    /// By optimizer and number of steps made, the parameters.
    let runs: [String: [String: [String: Numbers]]]
    let schedules: [String: [Double]]
    /// By maximum, what clipping makes of the second step's gradients.
    let clipped: [String: Clipped]

    static func load() throws -> Golden {
        let url = try #require(Bundle.module.url(forResource: "Resources/optimizers", withExtension: "json"))
        return try JSONDecoder().decode(Golden.self, from: Data(contentsOf: url))
    }

    /// Fresh parameters by name, in alphabetical order.
    func parameters(_ dtype: DType = .float64) -> [(name: String, parameter: Parameter)] {
        start.sorted { $0.key < $1.key }.map { ($0.key, Parameter($0.value.tensor.to(dtype))) }
    }

    /// Gives each parameter its gradient of the step.
    func setGradients(_ parameters: [(name: String, parameter: Parameter)], step: Int) {
        for (name, parameter) in parameters {
            parameter.grad = gradients[step][name]?.tensor.to(parameter.value.dtype)
        }
    }
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
