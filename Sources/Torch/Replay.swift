/// Lets a computation be done a second time exactly as the first, though its inputs then differ by rounding.
///
/// The first call runs its body and takes down where the random generator stood and what was chosen; every further call
/// starts the generator from there, repeats the choices, and leaves the generator as it found it. A choice is a tensor
/// that jumps when the inputs move a little, such as the buckets of a hash: computed anew from inputs that are off by a
/// rounding error, one of them might come out otherwise, and the gradients would be those of another function.
///
/// ```swift
/// let replay = Replay(generator)
/// let y = replay { layer(x) }         // draws and chooses
/// let again = replay { layer(x) }     // the same
/// ```
///
/// Costs the memory of the choices and 5 KB of generator state for each of them.
public final class Replay: @unchecked Sendable {
    @TaskLocal private static var current: Replay?

    private struct Choice {
        let value: Tensor
        /// The generator's state after it, since a choice that is repeated draws nothing.
        let state: Tensor
    }

    private let generator: RandomGenerator
    private var start: Tensor?
    private var choices: [Choice] = []
    private var next = 0
    private var isRepeating = false
    private var outer: Replay?

    /// - Parameter generator: what the computation draws from.
    public init(_ generator: RandomGenerator) { self.generator = generator }

    /// Runs the body: the first time as it is, then as the first time.
    public func callAsFunction<Result>(_ body: () throws -> Result) rethrows -> Result {
        guard let start else {
            self.start = generator.state
            return try scoped(body)
        }
        let present = generator.state
        generator.state = start
        (next, isRepeating) = (0, true)
        defer {
            isRepeating = false
            generator.state = present
        }
        return try scoped(body)
    }

    private func scoped<Result>(_ body: () throws -> Result) rethrows -> Result {
        outer = Replay.current
        defer { outer = nil }
        return try Replay.$current.withValue(self) { try body() }
    }

    /// What `choose` gives; inside a computation that is being repeated, what it gave the first time.
    public static func choice(_ choose: () -> Tensor) -> Tensor {
        guard let current else { return choose() }
        return current.choice(choose)
    }

    private func choice(_ choose: () -> Tensor) -> Tensor {
        if isRepeating {
            torchPrecondition(
                next < choices.count, in: "Replay", "a choice that was not made when the computation ran first")
            guard next < choices.count else { return choose() }
            defer { next += 1 }
            generator.state = choices[next].state
            return choices[next].value
        }
        // A part that is new may lie inside a whole that is repeated: the whole then knows the choice.
        let value = Replay.$current.withValue(outer) { Replay.choice(choose) }
        choices.append(Choice(value: value, state: generator.state))
        return value
    }
}
