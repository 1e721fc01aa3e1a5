import Torch
import TorchNN

/// The parameters of an optimizer with what it remembers of each: the number of updates, and after the first one a tensor
/// of the parameter's shape for each slot.
struct StateTable {
    struct Entry {
        let name: String
        let parameter: Parameter
        /// Updates so far.
        var step = 0
        /// As many as the table has slots; none before the first update.
        var slots: [Tensor] = []
    }

    let optimizer: String
    let slotNames: [String]
    var entries: [Entry]

    init(_ optimizer: String, slots: [String], _ parameters: [(name: String, parameter: Parameter)]) {
        let names = Set(parameters.map(\.name))
        torchPrecondition(names.count == parameters.count, in: optimizer, "two parameters have the same name")
        self.optimizer = optimizer
        slotNames = slots
        entries = parameters.map { Entry(name: $0.name, parameter: $0.parameter) }
    }

    func zeroGradients() {
        for entry in entries { entry.parameter.grad = nil }
    }

    /// Calls `body` with each entry that has something to update, its gradient, and its step already raised.
    mutating func update(_ body: (inout Entry, _ gradient: Tensor) -> Void) {
        for index in entries.indices {
            let parameter = entries[index].parameter
            guard parameter.isTrainable, let gradient = parameter.grad else { continue }
            entries[index].step += 1
            body(&entries[index], gradient)
        }
    }
}

extension StateTable.Entry {
    /// The slots, zeros at the first update.
    mutating func filledSlots(_ count: Int) -> [Tensor] {
        if slots.isEmpty {
            let like = parameter.value.detached()
            slots = (0..<count).map { _ in .zeros(like: like) }
        }
        return slots
    }
}

// MARK: - Saving and loading

extension StateTable {
    /// `NAME.step` for each parameter, and `NAME.SLOT` for those that have been updated.
    var state: [String: Tensor] {
        var result: [String: Tensor] = [:]
        for entry in entries {
            result["\(entry.name).step"] = Tensor(entry.step)
            for (slot, tensor) in zip(slotNames, entry.slots) { result["\(entry.name).\(slot)"] = tensor }
        }
        return result
    }

    mutating func load(_ state: [String: Tensor]) throws {
        var loaded = entries
        var rest = state
        var problems: [String] = []
        for index in loaded.indices {
            let name = loaded[index].name
            guard let step = Self.count(rest.removeValue(forKey: "\(name).step"), "\(name).step", &problems) else {
                // One complaint about a parameter is enough.
                for slot in slotNames { rest["\(name).\(slot)"] = nil }
                continue
            }
            loaded[index].step = step
            loaded[index].slots = []
            guard step > 0 else { continue }
            for slot in slotNames {
                let key = "\(name).\(slot)"
                if let tensor = Self.fitting(
                    rest.removeValue(forKey: key), key, loaded[index].parameter.value, &problems)
                {
                    loaded[index].slots.append(tensor)
                }
            }
        }
        problems += rest.keys.sorted().map { "unexpected '\($0)'" }
        guard problems.isEmpty else { throw OptimizerStateError(optimizer, problems) }
        entries = loaded
    }

    private static func count(_ tensor: Tensor?, _ key: String, _ problems: inout [String]) -> Int? {
        guard let tensor else {
            problems.append("missing '\(key)'")
            return nil
        }
        guard tensor.shape.isEmpty, tensor.dtype == .int64, tensor.integerItem() >= 0 else {
            problems.append("'\(key)' expected an int64 count, found \(tensor.dtype) \(tensor.shape)")
            return nil
        }
        return tensor.integerItem()
    }

    /// A copy of the tensor if it belongs to the parameter.
    private static func fitting(
        _ tensor: Tensor?, _ key: String, _ parameter: Tensor, _ problems: inout [String]
    ) -> Tensor? {
        guard let tensor else {
            problems.append("missing '\(key)'")
            return nil
        }
        guard tensor.shape == parameter.shape, tensor.dtype == parameter.dtype else {
            problems.append(
                "'\(key)' expected \(parameter.dtype) \(parameter.shape), found \(tensor.dtype) \(tensor.shape)")
            return nil
        }
        return tensor.detached().to(parameter.device).contiguous().cloned()
    }
}

/// Traps, naming the optimizer, on settings with which no update makes sense.
func checkSettings(
    _ optimizer: String, learningRate: Double, weightDecay: Double, betas: (Double, Double) = (0, 0),
    epsilon: Double = 0
) {
    torchPrecondition(
        learningRate >= 0 && weightDecay >= 0 && epsilon >= 0, in: optimizer,
        "expected learningRate, weightDecay and epsilon of at least 0, got \(learningRate), \(weightDecay), \(epsilon)")
    torchPrecondition(
        (0..<1).contains(betas.0) && (0..<1).contains(betas.1), in: optimizer,
        "expected betas of at least 0 and below 1, got \(betas.0), \(betas.1)")
}
