import Torch
import TorchNN

/// A layer that asks for something besides its task, such as an even use of its experts.
public protocol AuxiliaryLossProviding: Module {
    /// What training adds to the loss of the last pass, a single number, weighted already; nil where that pass was not
    /// in training, or there was none.
    var auxiliaryLoss: Tensor? { get }
}
