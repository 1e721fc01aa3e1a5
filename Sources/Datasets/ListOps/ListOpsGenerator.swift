/// How Long Range Arena draws its ListOps expressions (Tay et al., 2021, arXiv 2011.04006). The defaults are the
/// benchmark's: about 1 draw in 13 is kept, with a mean length near 1040 tokens.
public struct ListOpsConfiguration: Codable, Hashable, Sendable {
    /// Nodes at this depth are always digits; the root has depth 1.
    public var maximumDepth = 10
    /// An operator gets 2 to this many arguments, uniformly.
    public var maximumArguments = 10
    /// The chance that a node above the maximum depth is an operator.
    public var operatorProbability = 0.25
    /// Only expressions of more tokens than this are kept.
    public var lengthAbove = 500
    /// Only expressions of fewer tokens than this are kept.
    public var lengthBelow = 2000
    /// Expressions in each split.
    public var trainCount = 96_000
    public var validationCount = 2_000
    public var testCount = 2_000
    /// Decides every draw and the split.
    public var seed: UInt64 = 0

    public init() {}

    /// The benchmark's tree with other lengths and sizes, for models that should learn in minutes.
    public init(
        lengthAbove: Int, lengthBelow: Int, trainCount: Int, validationCount: Int, testCount: Int, seed: UInt64 = 0
    ) {
        self.lengthAbove = lengthAbove
        self.lengthBelow = lengthBelow
        self.trainCount = trainCount
        self.validationCount = validationCount
        self.testCount = testCount
        self.seed = seed
    }

    func check() throws(DatasetError) {
        try DatasetError.check(
            (1...ListOpsExpression.maximumNesting).contains(maximumDepth), "maximum depth", maximumDepth,
            expected: "1 to \(ListOpsExpression.maximumNesting)")
        try DatasetError.check(
            (2...1_000_000).contains(maximumArguments), "maximum arguments", maximumArguments,
            expected: "2 to 1000000")
        try DatasetError.check(
            (0...1).contains(operatorProbability), "operator probability", operatorProbability, expected: "0 to 1")
        try DatasetError.check(lengthAbove >= 0, "length above", lengthAbove, expected: "at least 0")
        try DatasetError.check(
            lengthBelow > lengthAbove && lengthBelow - lengthAbove > 1, "length below", lengthBelow,
            expected: "at least 2 more than the \(lengthAbove) that lengths must be above")
        for (name, count) in [("train", trainCount), ("validation", validationCount), ("test", testCount)] {
            try DatasetError.check(
                (0...1_000_000_000).contains(count), "\(name) count", count, expected: "0 to 1000000000")
        }
    }
}

/// An expression and its answer, 0 to 9.
public struct ListOpsExample: Hashable, Sendable {
    public let expression: ListOpsExpression
    public let answer: Int

    public init(expression: ListOpsExpression, answer: Int) {
        self.expression = expression
        self.answer = answer
    }
}

/// Draws distinct expressions, each answer proven by two evaluators.
public struct ListOpsGenerator: Sendable {
    public let configuration: ListOpsConfiguration
    private var generator: SeededGenerator
    private var tokens: [ListOpsToken] = []
    private var seen: Set<ListOpsExpression> = []

    /// Draws in a row without a new expression after which ``next()`` gives up; the benchmark needs about 13.
    static let patience = 1_000_000

    /// - Throws: ``DatasetError/invalidSetting(name:value:expected:)`` for a configuration outside its ranges.
    public init(_ configuration: ListOpsConfiguration) throws(DatasetError) {
        try configuration.check()
        self.configuration = configuration
        generator = SeededGenerator(seed: configuration.seed)
    }

    /// The next expression that has not come before.
    ///
    /// - Throws: ``DatasetError/exhausted(what:found:wanted:)`` when a million draws bring nothing new.
    public mutating func next() throws(DatasetError) -> ListOpsExample {
        for _ in 0..<Self.patience {
            tokens.removeAll(keepingCapacity: true)
            guard draw(depth: 1), tokens.count > configuration.lengthAbove else { continue }
            let expression = ListOpsExpression(unchecked: tokens)
            guard seen.insert(expression).inserted else { continue }
            return ListOpsExample(expression: expression, answer: try expression.provenValue())
        }
        throw .exhausted(
            what: "ListOps of \(configuration.lengthAbove + 1) to \(configuration.lengthBelow - 1) tokens",
            found: seen.count, wanted: seen.count + 1)
    }

    /// Appends one random node. False once the expression has become too long: the rest would be drawn in vain.
    private mutating func draw(depth: Int) -> Bool {
        guard tokens.count + 1 < configuration.lengthBelow else { return false }
        let isDigit =
            depth >= configuration.maximumDepth || generator.nextUnit() > configuration.operatorProbability
        guard !isDigit else {
            tokens.append(ListOpsToken(digit: generator.next(below: 10)))
            return true
        }
        let arguments = 2 + generator.next(below: configuration.maximumArguments - 1)
        let start = tokens.count
        tokens.append(.minimum)
        for _ in 0..<arguments {
            guard draw(depth: depth + 1) else { return false }
        }
        // The benchmark draws the operator after its arguments.
        tokens[start] = ListOpsToken.operators[generator.next(below: ListOpsToken.operators.count)]
        tokens.append(.close)
        return tokens.count < configuration.lengthBelow
    }
}

/// The three splits of a ListOps set.
public struct ListOpsSplits: Hashable, Sendable {
    public var train: [ListOpsExample]
    public var validation: [ListOpsExample]
    public var test: [ListOpsExample]

    public init(train: [ListOpsExample], validation: [ListOpsExample], test: [ListOpsExample]) {
        self.train = train
        self.validation = validation
        self.test = test
    }

    /// Draws distinct expressions, shuffles them by the seed and deals them out. No expression is in two splits.
    ///
    /// The benchmark's 100,000 take about 110 MB of memory.
    public init(generating configuration: ListOpsConfiguration) throws(DatasetError) {
        var generator = try ListOpsGenerator(configuration)
        let wanted = configuration.trainCount + configuration.validationCount + configuration.testCount
        var examples: [ListOpsExample] = []
        examples.reserveCapacity(wanted)
        do throws(DatasetError) {
            while examples.count < wanted {
                examples.append(try generator.next())
            }
        } catch .exhausted(let what, let found, _) {
            throw .exhausted(what: what, found: found, wanted: wanted)
        }
        var shuffler = SeededGenerator(seed: configuration.seed, path: 1)
        shuffler.shuffle(&examples)
        let testStart = configuration.trainCount + configuration.validationCount
        self.init(
            train: Array(examples[..<configuration.trainCount]),
            validation: Array(examples[configuration.trainCount..<testStart]),
            test: Array(examples[testStart...]))
    }
}
