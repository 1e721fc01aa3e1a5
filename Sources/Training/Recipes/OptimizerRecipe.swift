import Torch

/// How parameters are updated. A key that the named optimizer has no use for is refused.
public struct OptimizerRecipe: Codable, Equatable, Sendable {
    /// The words that recipes use.
    public enum Name: String, NamedChoice { case sgd, adam, adamw, radam }

    public var name = Name.adamw
    /// The full rate, which the schedule multiplies.
    public var learningRate = 3e-4
    public var weightDecay = 0.01
    /// Of `sgd`.
    public var momentum = 0.0
    /// The decay rates of both running means, of all but `sgd`.
    public var betas = [0.9, 0.95]
    /// Of all but `sgd`.
    public var epsilon = 1e-8
    /// The largest norm of all gradients together; 0 for no clipping.
    public var clipNorm = 1.0
    /// Takes the gradients where the loss is highest around the weights; nil for those at the weights.
    public var sam: Sharpness?

    /// Sharpness-aware minimization around the optimizer.
    public struct Sharpness: Codable, Equatable, Sendable {
        /// ρ, the radius of what counts as around.
        public var rho = 0.05
        /// Whether the radius of each weight goes by its magnitude.
        public var adaptive = false

        public init() {}

        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            rho = try values.value(.rho, default: rho, .above(0))
            adaptive = try values.value(.adaptive, default: adaptive)
        }
    }

    public init() {}

    private enum CodingKeys: String, CodingKey {
        case name, learningRate, weightDecay, momentum, betas, epsilon, clipNorm, sam
    }

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        name = try values.value(.name, default: name)
        learningRate = try values.value(.learningRate, default: learningRate, .above(0))
        weightDecay = try values.value(.weightDecay, default: weightDecay, .atLeast(0))
        clipNorm = try values.value(.clipNorm, default: clipNorm, .atLeast(0))
        sam = try values.decodeIfPresent(Sharpness.self, forKey: .sam)
        switch name {
        case .sgd: momentum = try values.value(.momentum, default: momentum, .from(0, below: 1))
        case .adam, .adamw, .radam:
            epsilon = try values.value(.epsilon, default: epsilon, .above(0))
            betas = try values.value(.betas, default: betas)
            guard betas.count == 2, betas.allSatisfy({ $0 >= 0 && $0 < 1 }) else {
                throw DecodingError.dataCorruptedError(
                    forKey: .betas, in: values,
                    debugDescription: "expected two numbers of at least 0 and less than 1, found \(betas)")
            }
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: CodingKeys.self)
        try values.encode(name, forKey: .name)
        try values.encode(learningRate, forKey: .learningRate)
        try values.encode(weightDecay, forKey: .weightDecay)
        switch name {
        case .sgd: try values.encode(momentum, forKey: .momentum)
        case .adam, .adamw, .radam:
            try values.encode(betas, forKey: .betas)
            try values.encode(epsilon, forKey: .epsilon)
        }
        try values.encode(clipNorm, forKey: .clipNorm)
        try values.encodeIfPresent(sam, forKey: .sam)
    }
}

/// How the learning rate changes over the run. A key that the named schedule has no use for is refused.
public struct ScheduleRecipe: Codable, Equatable, Sendable {
    /// The words that recipes use.
    public enum Name: String, NamedChoice {
        case constant, cosine, linear, step
        case cosineRestarts = "cosine-restarts"
        case inverseSquareRoot = "inverse-square-root"
    }

    public var name = Name.constant
    /// Steps over which the rate rises to its full value.
    public var warmupSteps = 0
    /// The share of the full rate that is left at the end, of `cosine`, `cosine-restarts` and `linear`.
    public var finalFraction = 0.0
    /// Steps between two reductions, of `step`, or two starts, of `cosine-restarts`.
    public var every = 1000
    /// What the rate is multiplied by at each reduction, of `step`.
    public var factor = 0.1
    /// How many reductions there are, of `step`; 0 for no limit.
    public var times = 0

    public init() {}

    private enum CodingKeys: String, CodingKey { case name, warmupSteps, finalFraction, every, factor, times }

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        name = try values.value(.name, default: name)
        warmupSteps = try values.value(.warmupSteps, default: warmupSteps, .atLeast(0))
        switch name {
        case .constant, .inverseSquareRoot: break
        case .cosine, .linear:
            finalFraction = try values.value(.finalFraction, default: finalFraction, .between(0, and: 1))
        case .cosineRestarts:
            every = try values.value(.every, default: every, .atLeast(1))
            finalFraction = try values.value(.finalFraction, default: finalFraction, .between(0, and: 1))
        case .step:
            every = try values.value(.every, default: every, .atLeast(1))
            factor = try values.value(.factor, default: factor, .between(0, and: 1))
            times = try values.value(.times, default: times, .atLeast(0))
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: CodingKeys.self)
        try values.encode(name, forKey: .name)
        try values.encode(warmupSteps, forKey: .warmupSteps)
        switch name {
        case .constant, .inverseSquareRoot: break
        case .cosine, .linear: try values.encode(finalFraction, forKey: .finalFraction)
        case .cosineRestarts:
            try values.encode(every, forKey: .every)
            try values.encode(finalFraction, forKey: .finalFraction)
        case .step:
            try values.encode(every, forKey: .every)
            try values.encode(factor, forKey: .factor)
            try values.encode(times, forKey: .times)
        }
    }
}

/// How long and how often: steps, batches, evaluations, checkpoints.
public struct TrainingRecipe: Codable, Equatable, Sendable {
    /// Updates of the parameters.
    public var steps = 1000
    /// Sequences of one forward pass.
    public var batchSize = 8
    /// Batches whose gradients are added up for one step.
    public var accumulation = 1
    /// Steps between evaluations; 0 for none but the last.
    public var evaluateEvery = 200
    /// Batches of one evaluation; 0 for the whole split.
    public var evaluationBatches = 20
    /// Steps between checkpoints; 0 for none but the last.
    public var checkpointEvery = 200
    /// Evaluations without a better result after which training ends; 0 for never.
    public var earlyStoppingPatience = 0
    /// Steps between lines of the log.
    public var logEvery = 10
    /// Minutes after which training ends; 0 for no limit.
    public var timeLimitMinutes = 0.0

    public init() {}

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        let count = Bounds.between(0, and: 1_000_000_000_000)
        let positive = Bounds.between(1, and: 1_000_000_000_000)
        steps = try values.value(.steps, default: steps, positive)
        batchSize = try values.value(.batchSize, default: batchSize, .between(1, and: 1 << 20))
        accumulation = try values.value(.accumulation, default: accumulation, .between(1, and: 1 << 20))
        evaluateEvery = try values.value(.evaluateEvery, default: evaluateEvery, count)
        evaluationBatches = try values.value(.evaluationBatches, default: evaluationBatches, count)
        checkpointEvery = try values.value(.checkpointEvery, default: checkpointEvery, count)
        earlyStoppingPatience = try values.value(.earlyStoppingPatience, default: earlyStoppingPatience, count)
        logEvery = try values.value(.logEvery, default: logEvery, positive)
        timeLimitMinutes = try values.value(.timeLimitMinutes, default: timeLimitMinutes, .atLeast(0))
    }
}
