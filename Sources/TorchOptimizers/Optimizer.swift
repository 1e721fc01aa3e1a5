import Torch
import TorchNN

/// Changes parameters by their gradients.
///
/// A parameter that is frozen or has no gradient is left alone, and its running averages too.
public protocol Optimizer: AnyObject {
    /// Read at each ``step()``; a schedule sets it before.
    var learningRate: Double { get set }

    /// One update of every parameter that has a gradient.
    func step()

    /// Drops every parameter's gradient.
    func zeroGradients()

    /// What ``load(state:)`` needs to continue bit for bit, by the parameters' names, settings excepted:
    /// `blocks.0.mixer.query.weight.step` and so on. The tensors share the optimizer's memory: write or clone them before the
    /// next step.
    var state: [String: Tensor] { get }

    /// Continues from a copy of `state`.
    ///
    /// - Throws: ``OptimizerStateError`` when it is not exactly the state of such an optimizer over parameters of these names,
    ///   shapes and types, whatever their order. Nothing has been changed then.
    func load(state: [String: Tensor]) throws
}

/// Why a saved state is not that of an optimizer; its description is one line.
public struct OptimizerStateError: Error, Equatable, Sendable, CustomStringConvertible {
    public let description: String

    init(_ optimizer: String, _ problems: [String]) {
        let shown = problems.prefix(8).joined(separator: ", ")
        let rest = problems.count > 8 ? " and \(problems.count - 8) more" : ""
        description = "not the state of this \(optimizer): \(shown)\(rest)"
    }
}
