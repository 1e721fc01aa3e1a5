import Testing

@testable import Datasets

@Suite struct ListOpsGeneratorTests {
    static let small = ListOpsConfiguration(
        lengthAbove: 10, lengthBelow: 129, trainCount: 400, validationCount: 50, testCount: 60, seed: 3)

    @Test func defaultsAreTheBenchmarks() throws {
        var generator = try ListOpsGenerator(ListOpsConfiguration())
        let examples = try (0..<60).map { _ in try generator.next() }
        let lengths = examples.map(\.expression.length)
        #expect(lengths.allSatisfy { 500 < $0 && $0 < 2000 })
        // The mean is 1037 with a deviation of about 420 for one draw: four standard errors.
        #expect(abs(lengths.reduce(0, +) / 60 - 1037) < 220)
        #expect(Set(examples.flatMap(\.expression.tokens)).count == 15)
    }

    @Test func splitsAreDistinctProvenAndInRange() throws {
        let splits = try ListOpsSplits(generating: Self.small)
        #expect([splits.train.count, splits.validation.count, splits.test.count] == [400, 50, 60])
        let all = splits.train + splits.validation + splits.test
        #expect(Set(all.map(\.expression)).count == 510)
        for example in all {
            #expect((11...128).contains(example.expression.length))
            #expect(example.answer == example.expression.value)
            #expect(example.answer == example.expression.stackMachineValue)
            #expect(try ListOpsExpression(tokens: example.expression.tokens) == example.expression)
        }
    }

    @Test func seedsDecide() throws {
        var other = Self.small
        other.seed = 4
        #expect(try ListOpsSplits(generating: Self.small) == ListOpsSplits(generating: Self.small))
        #expect(try ListOpsSplits(generating: Self.small) != ListOpsSplits(generating: other))
    }

    @Test func expressionsOfASeedNeverChange() throws {
        let texts = try ListOpsExpressionTests.randomExpressions(40, seed: 7, lengthBelow: 12).map(
            \.expression.description)
        #expect(texts.suffix(2) == ["[MIN 9 2 ]", "[MED 3 3 4 1 2 9 2 3 ]"])
    }

    @Test func treesKeepToTheirBounds() throws {
        var configuration = ListOpsConfiguration(
            lengthAbove: 3, lengthBelow: 300, trainCount: 300, validationCount: 0, testCount: 0)
        configuration.maximumDepth = 4
        configuration.maximumArguments = 3
        configuration.operatorProbability = 0.9
        for example in try ListOpsSplits(generating: configuration).train {
            var arguments: [Int] = []
            for token in example.expression.tokens {
                if token == .close {
                    #expect((2...3).contains(arguments.removeLast()))
                } else if !arguments.isEmpty {
                    arguments[arguments.count - 1] += 1
                }
                if token.isOperator {
                    arguments.append(0)
                    #expect(arguments.count <= 3)
                }
            }
        }
    }

    @Test func digitsAndOperatorsAreUniform() throws {
        let splits = try ListOpsSplits(generating: Self.small)
        var counts: [ListOpsToken: Int] = [:]
        for token in splits.train.flatMap(\.expression.tokens) { counts[token, default: 0] += 1 }
        let digits = (0...9).map { Double(counts[ListOpsToken(digit: $0), default: 0]) }
        let operators = ListOpsToken.operators.map { Double(counts[$0, default: 0]) }
        for kinds in [digits, operators] {
            let mean = kinds.reduce(0, +) / Double(kinds.count)
            #expect(kinds.allSatisfy { abs($0 - mean) < 6 * mean.squareRoot() }, "\(kinds)")
        }
    }

    @Test func exhaustionEnds() throws {
        let digitsOnly = ListOpsConfiguration(
            lengthAbove: 0, lengthBelow: 2, trainCount: 11, validationCount: 0, testCount: 0)
        #expect(throws: DatasetError.exhausted(what: "ListOps of 1 to 1 tokens", found: 10, wanted: 11)) {
            try ListOpsSplits(generating: digitsOnly)
        }
    }

    @Test func hugeTreesAreCutShort() throws {
        var configuration = ListOpsConfiguration(
            lengthAbove: 0, lengthBelow: 50, trainCount: 5, validationCount: 0, testCount: 0)
        configuration.maximumDepth = 256
        configuration.operatorProbability = 0.5
        #expect(try ListOpsSplits(generating: configuration).train.count == 5)
    }

    @Test(
        arguments: [
            \ListOpsConfiguration.maximumDepth, \.maximumArguments, \.lengthAbove, \.lengthBelow, \.trainCount,
            \.validationCount, \.testCount,
        ] as [any WritableKeyPath<ListOpsConfiguration, Int> & Sendable])
    func settingsOutOfRangeAreErrors(setting: any WritableKeyPath<ListOpsConfiguration, Int> & Sendable) {
        var configuration = ListOpsConfiguration()
        configuration[keyPath: setting] = -1
        #expect(throws: DatasetError.self) { try ListOpsGenerator(configuration) }
    }

    @Test func probabilityOutOfRangeIsAnError() {
        for probability in [-0.1, 1.1, .nan] {
            var configuration = ListOpsConfiguration()
            configuration.operatorProbability = probability
            #expect(throws: DatasetError.self) { try ListOpsGenerator(configuration) }
        }
    }
}
