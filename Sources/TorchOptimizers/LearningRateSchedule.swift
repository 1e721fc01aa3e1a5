import Foundation
import Torch

/// How the learning rate changes over a run: a factor for each step, counted from 0.
///
/// Every schedule may begin with a warm-up, where the factor of step s is (s + 1) / warmupSteps; its own course starts after
/// that. `steps` is the length of the whole run, warm-up included.
public enum LearningRateSchedule: Equatable, Sendable {
    /// 1.
    case constant(warmupSteps: Int = 0)
    /// Half a cosine from 1 to `finalFraction`, which it keeps beyond `steps`.
    case cosine(steps: Int, finalFraction: Double = 0, warmupSteps: Int = 0)
    /// Half a cosine from 1 to `finalFraction` over each `every` steps, begun anew at their end (Loshchilov and Hutter,
    /// 2016, arXiv 1608.03983).
    case cosineRestarts(every: Int, finalFraction: Double = 0, warmupSteps: Int = 0)
    /// A straight line from 1 to `finalFraction`, which it keeps beyond `steps`.
    case linear(steps: Int, finalFraction: Double = 0, warmupSteps: Int = 0)
    /// √(warmupSteps / (s + 1)); without a warm-up, √(1 / (s + 1)).
    case inverseSquareRoot(warmupSteps: Int = 0)
    /// Multiplied by `factor` after each `every` steps, but not more than `times` times.
    case step(every: Int, factor: Double = 0.1, times: Int = .max, warmupSteps: Int = 0)

    /// The names that recipes use.
    public enum Name: String, Codable, CaseIterable, Sendable {
        case constant, cosine, linear, step
        case cosineRestarts = "cosine-restarts"
        case inverseSquareRoot = "inverse-square-root"
    }

    public var name: Name {
        switch self {
        case .constant: .constant
        case .cosine: .cosine
        case .cosineRestarts: .cosineRestarts
        case .linear: .linear
        case .inverseSquareRoot: .inverseSquareRoot
        case .step: .step
        }
    }

    public var warmupSteps: Int {
        switch self {
        case .constant(let warmup), .cosine(_, _, let warmup), .cosineRestarts(_, _, let warmup),
            .linear(_, _, let warmup), .inverseSquareRoot(let warmup), .step(_, _, _, let warmup):
            warmup
        }
    }

    /// What the full learning rate is multiplied by at the step of this number, the first being 0.
    public func callAsFunction(step: Int) -> Double {
        if let problem { torchPrecondition(false, in: "LearningRateSchedule", problem) }
        torchPrecondition(step >= 0, in: "LearningRateSchedule", "expected a step of at least 0, got \(step)")
        if step < warmupSteps { return Double(step + 1) / Double(warmupSteps) }
        switch self {
        case .constant: return 1
        case .cosine(let steps, let final, _):
            return Self.cosine(progress(step, of: steps), final)
        case .cosineRestarts(let every, let final, _):
            return Self.cosine(Double((step - warmupSteps) % max(every, 1)) / Double(max(every, 1)), final)
        case .linear(let steps, let final, _): return 1 - (1 - final) * progress(step, of: steps)
        case .inverseSquareRoot: return (Double(max(warmupSteps, 1)) / Double(step + 1)).squareRoot()
        case .step(let every, let factor, let times, _):
            return pow(factor, Double(min(times, (step - warmupSteps) / max(every, 1))))
        }
    }

    private static func cosine(_ progress: Double, _ final: Double) -> Double {
        final + (1 - final) * (1 + cos(.pi * progress)) / 2
    }

    /// From 0 after the warm-up to 1 at the end.
    private func progress(_ step: Int, of steps: Int) -> Double {
        steps > warmupSteps ? min(1, Double(step - warmupSteps) / Double(steps - warmupSteps)) : 1
    }

    /// What is wrong with the values, if anything.
    private var problem: String? {
        if warmupSteps < 0 { return "expected warmupSteps of at least 0, got \(warmupSteps)" }
        switch self {
        case .constant, .inverseSquareRoot: return nil
        case .cosine(let steps, let final, _), .linear(let steps, let final, _):
            if steps < 1 { return "expected steps of at least 1, got \(steps)" }
            return (0...1).contains(final) ? nil : "expected a finalFraction from 0 to 1, got \(final)"
        case .cosineRestarts(let every, let final, _):
            if every < 1 { return "expected every to be at least 1, got \(every)" }
            return (0...1).contains(final) ? nil : "expected a finalFraction from 0 to 1, got \(final)"
        case .step(let every, let factor, let times, _):
            if times < 0 { return "expected times to be at least 0, got \(times)" }
            if every < 1 { return "expected every to be at least 1, got \(every)" }
            return (0...1).contains(factor) ? nil : "expected a factor from 0 to 1, got \(factor)"
        }
    }
}

// MARK: - Codable

/// As one flat mapping: `name`, `warmupSteps`, and the values of that schedule.
extension LearningRateSchedule: Codable {
    private enum CodingKeys: String, CodingKey { case name, warmupSteps, steps, finalFraction, every, factor, times }

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        let warmup = try values.decodeIfPresent(Int.self, forKey: .warmupSteps) ?? 0
        let final = { try values.decodeIfPresent(Double.self, forKey: .finalFraction) ?? 0 }
        switch try values.decode(Name.self, forKey: .name) {
        case .constant: self = .constant(warmupSteps: warmup)
        case .cosine:
            self = .cosine(
                steps: try values.decode(Int.self, forKey: .steps), finalFraction: try final(), warmupSteps: warmup)
        case .cosineRestarts:
            self = .cosineRestarts(
                every: try values.decode(Int.self, forKey: .every), finalFraction: try final(), warmupSteps: warmup)
        case .linear:
            self = .linear(
                steps: try values.decode(Int.self, forKey: .steps), finalFraction: try final(), warmupSteps: warmup)
        case .inverseSquareRoot: self = .inverseSquareRoot(warmupSteps: warmup)
        case .step:
            self = .step(
                every: try values.decode(Int.self, forKey: .every),
                factor: try values.decodeIfPresent(Double.self, forKey: .factor) ?? 0.1,
                times: try values.decodeIfPresent(Int.self, forKey: .times) ?? .max, warmupSteps: warmup)
        }
        if let problem {
            throw DecodingError.dataCorruptedError(forKey: .name, in: values, debugDescription: problem)
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: CodingKeys.self)
        try values.encode(name, forKey: .name)
        try values.encode(warmupSteps, forKey: .warmupSteps)
        switch self {
        case .constant, .inverseSquareRoot: break
        case .cosine(let steps, let final, _), .linear(let steps, let final, _):
            try values.encode(steps, forKey: .steps)
            try values.encode(final, forKey: .finalFraction)
        case .cosineRestarts(let every, let final, _):
            try values.encode(every, forKey: .every)
            try values.encode(final, forKey: .finalFraction)
        case .step(let every, let factor, let times, _):
            if times < .max { try values.encode(times, forKey: .times) }
            try values.encode(every, forKey: .every)
            try values.encode(factor, forKey: .factor)
        }
    }
}
