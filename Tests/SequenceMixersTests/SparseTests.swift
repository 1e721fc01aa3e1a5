import Foundation
import SequenceMixers
import Testing
import Torch
import TorchNN

/// Patterns as values: what they contain, how they combine, how they print.
@Suite struct SparsePatternTests {
    @Test(arguments: [
        (SparsePattern.window(radius: 1), false, "##....\n###...\n.###..\n..###.\n...###\n....##"),
        (.window(radius: 1, dilation: 2), true, "#.....\n.#....\n#.#...\n.#.#..\n..#.#.\n...#.#"),
        (SparsePattern(.stride(3)), false, "#..#..\n.#..#.\n..#..#\n#..#..\n.#..#.\n..#..#"),
        (SparsePattern(.block(4)), false, "####..\n####..\n####..\n####..\n....##\n....##"),
        (SparsePattern(.columns(size: 3, count: 1)), false, "#.#..#\n.##..#\n..#..#\n..##.#\n..#.##\n..#..#"),
        (.global([1, -1, 9]), false, "##...#\n######\n.##..#\n.#.#.#\n.#..##\n######"),
        (.star(relay: 0, ring: 1), false, "######\n###..#\n####..\n#.###.\n#..###\n##..##"),
        (.strided(3), true, "#.....\n##....\n###...\n####..\n.####.\n..####"),
        (.fixed(block: 3), true, "#.....\n##....\n###...\n..##..\n..###.\n..####"),
        (.longformer(radius: 1), false, "######\n###...\n####..\n#.###.\n#..###\n#...##"),
        (
            .custom(picture: ["......", "#.....", "######", "......", "......", ".....#"]), true,
            "#.....\n##....\n###...\n...#..\n....#.\n.....#"
        ),
    ]) func pictures(_ pattern: SparsePattern, _ causal: Bool, _ picture: String) {
        #expect(pattern.picture(length: 6, isCausal: causal) == picture)
        #expect(pattern.connections(length: 6, isCausal: causal) == picture.count { $0 == "#" })
    }

    @Test func bigBirdSeesNeighborsEdgesAndGivenBlocks() {
        let pattern = SparsePattern.bigBird(block: 2, random: .given([[[4], [5], [1], [1]]]))
        #expect(
            pattern.picture(length: 11) == """
                ###########
                ###########
                ######..###
                ######..###
                ########..#
                ########..#
                ###########
                ###########
                ####..#####
                ####..#####
                ###########
                """)
    }

    @Test func headsTakeTurns() {
        let pattern = SparsePattern.multihead([.window(radius: 1), SparsePattern(.stride(2))]).union(.global([0]))
        #expect(pattern.choices.count == 2)
        for (head, own) in [SparsePattern.window(radius: 1), SparsePattern(.stride(2)), .window(radius: 1)].enumerated()
        {
            #expect(
                pattern.picture(length: 7, head: head) == own.union(.global([0])).picture(length: 7), "head \(head)")
        }
        let three = SparsePattern.multihead([.global([0]), .global([1]), .global([2])])
        #expect(pattern.union(three).choices.count == 6)
    }

    @Test func randomBlocksAreMadeBySeedHeadAndRow() {
        func masks(_ seed: Int, _ length: Int = 40) -> Tensor {
            SparsePattern.bigBird(block: 2, random: .drawn(count: 3, seed: seed)).mask(length: length, heads: 3)
        }
        #expect(masks(1).isIdentical(to: masks(1)))
        #expect(!masks(1).isIdentical(to: masks(2)))
        #expect(!masks(1).selected(0, 0).isIdentical(to: masks(1).selected(0, 1)))
        // Blocks between the edges see 5 and 3 more; next to an edge it is one less.
        let perRow = masks(1).selected(0, 0).to(.int64).sum(1).scalars(as: Int.self)
        #expect(perRow[0] == 40 && perRow[39] == 40 && perRow[20] == 16 && perRow[2] == 14, "\(perRow)")
        // A decoder's choice for a block does not change when the sequence goes on.
        let random = SparsePattern.random(block: 2, .drawn(count: 2, seed: 5))
        let (short, long) = (random.mask(length: 14, isCausal: true), random.mask(length: 40, isCausal: true))
        #expect(long.sliced(1, 0..<14).sliced(2, 0..<14).isIdentical(to: short))
    }

    @Test(arguments: [
        ("{\"type\": \"strided\", \"stride\": 4}", SparsePattern.strided(4)),
        ("{\"type\": \"fixed\", \"size\": 4, \"columns\": 2}", .fixed(block: 4, columns: 2)),
        ("{\"type\": \"longformer\", \"radius\": 4}", .longformer(radius: 4)),
        ("{\"type\": \"bigbird\"}", .bigBird()),
        (
            "{\"type\": \"random\", \"block\": 4, \"random\": 2, \"seed\": 7}",
            .random(block: 4, .drawn(count: 2, seed: 7))
        ),
        ("{\"type\": \"custom\", \"picture\": [\"#.\", \"##\"]}", .custom(picture: ["#.", "##"])),
        (
            "{\"type\": \"union\", \"of\": [{\"type\": \"window\", \"radius\": 2}, {\"type\": \"global\", \"tokens\": [0]}]}",
            .longformer(radius: 2)
        ),
        (
            "{\"type\": \"multihead\", \"of\": [{\"type\": \"block\", \"size\": 2}, {\"type\": \"star\"}]}",
            .multihead([SparsePattern(.block(2)), .star()])
        ),
        (
            "{\"type\": \"bigbird\", \"block\": 4, \"randomBlocks\": [[[1]]]}",
            .bigBird(block: 4, random: .given([[[1]]]))
        ),
        ("{\"type\": \"columns\", \"size\": 4}", SparsePattern(.columns(size: 4, count: 1))),
        ("{\"type\": \"stride\", \"stride\": 4}", SparsePattern(.stride(4))),
    ]) func fromJSONAndBack(_ json: String, _ pattern: SparsePattern) throws {
        let decoded = try JSONDecoder().decode(SparsePattern.self, from: Data(json.utf8))
        #expect(decoded == pattern)
        #expect(try JSONDecoder().decode(SparsePattern.self, from: JSONEncoder().encode(decoded)) == pattern)
    }
}

/// The conditions of the universality theorem.
@Suite struct SparseUniversalityTests {
    @Test(arguments: [
        (SparsePattern.star(relay: -1, ring: 1), 2), (.longformer(radius: 1), 2), (.fixed(block: 5), 2),
        (.strided(5), 2), (.bigBird(block: 2, random: .drawn(count: 0)), 2), (.window(radius: 1), 24),
        (.window(radius: 24), 1),
    ]) func patternsThatSatisfyIt(_ pattern: SparsePattern, _ layers: Int) {
        let report = pattern.universality(length: 25)
        #expect(report.isSatisfied && pattern.satisfiesUniversality(length: 25))
        #expect(report.everyTokenSeesItself)
        #expect(report.layersToReachAll == layers, "\(report)")
    }

    @Test func patternsThatDoNot() {
        // Dilated windows, and strides, never leave their residue.
        for pattern in [
            SparsePattern.window(radius: 3, dilation: 2), SparsePattern(.stride(4)), SparsePattern(.block(6)),
        ] {
            let report = pattern.universality(length: 25)
            #expect(!report.isSatisfied)
            #expect(report.layersToReachAll == nil)
            #expect(report.path == .impossible)
        }
        // Nothing reaches what is before it.
        #expect(SparsePattern.window(radius: 24).universality(length: 25, isCausal: true).layersToReachAll == nil)
    }

    @Test func layersTakeTurns() {
        let layers = [SparsePattern(.block(5)), SparsePattern(.stride(5))]
        let report = SparsePattern.universality(ofLayers: layers, length: 25)
        #expect(report.layersToReachAll == 2 && report.isSatisfied)
        #expect(SparsePattern.multihead(layers).universality(length: 25, heads: 2).layersToReachAll == 2)
        #expect(SparsePattern.multihead(layers).universality(length: 25, heads: 1).layersToReachAll == nil)
    }

    @Test func aPathThatIsNotTheOrderOfThePositions() {
        // 0 - 2 - 1 - 3 in a row.
        let pattern = SparsePattern.custom(picture: ["..#.", "..##", "##..", ".#.."])
        let report = pattern.universality(length: 4)
        guard case .found(let order) = report.path else {
            Issue.record("\(report)")
            return
        }
        #expect(order == [0, 2, 1, 3] || order == [3, 1, 2, 0])
        #expect(
            report.description == """
                every token sees itself: yes
                a path passes through all 4 positions: yes
                everything reaches everything: yes, in 3 layers
                """)
    }
}

@Suite struct SparseCoreTests {
    /// 16,384 tokens: a matrix of scores would be a gigabyte, and one of visible pairs a quarter of that.
    @Test(arguments: [
        SparsePattern.longformer(radius: 16, tokens: [0, 5000]), .bigBird(block: 16, random: .drawn(count: 2, seed: 3)),
        .strided(128, radius: 16),
    ]) func longSequencesNeedNoMatrix(_ pattern: SparsePattern) {
        let generator = RandomGenerator(seed: 1)
        let inputs = (0..<3).map { _ in Tensor.randomNormal([1, 1, 16_384, 4], using: generator).requiringGrad() }
        let out = SparseCore(pattern, isCausal: false)(inputs[0], inputs[1], inputs[2], paddingMask: nil)
        let found = gradients(of: [out.sum()], withRespectTo: inputs)
        #expect(found.allSatisfy { $0?.isAllFinite ?? false })
        // The gradients of the values are the weights: over all keys, they sum to the number of queries.
        #expect(abs((found[2]?.sum().item() ?? 0) / (16_384 * 4) - 1) < 1e-4)
    }

    private static let scatteredRows: [String] = (0..<150).map { (i: Int) -> String in
        let row: [Character] = (0..<150).map { (j: Int) -> Character in i * j % 64 < 40 ? "#" : "." }
        return String(row)
    }

    private static let dilations = SparsePattern([
        .window(radius: 4), .window(radius: 4, dilation: 4), .window(radius: 3, dilation: 16),
    ])

    /// Sequences of several tiles, heads that differ, keys that are hidden.
    @Test(
        arguments: [
            SparsePattern.window(radius: 70), .longformer(radius: 5, tokens: [0, 70, -1]), .star(relay: 66, ring: 20),
            .bigBird(block: 16, random: .drawn(count: 2, seed: 3)), .random(block: 8, .drawn(count: 1, seed: 1)),
            .multihead([.window(radius: 3), .window(radius: 90), SparsePattern(.block(50))]),
            .multihead([.window(radius: 3), SparsePattern(.stride(7))]), .fixed(block: 12, columns: 2),
            .strided(11), .strided(9, radius: 20), .longformer(radius: 6, dilation: 3, tokens: [0, 40]), dilations,
            .multihead([SparsePattern(.columns(size: 5, count: 2)), .window(radius: 2, dilation: 5), .strided(6)]),
            .strided(7).union(.fixed(block: 10)),
            .custom(picture: scatteredRows),
        ], [false, true])
    func longerSequencesGiveTheReference(_ pattern: SparsePattern, _ causal: Bool) {
        let core = SparseCore(pattern, isCausal: causal)
        let generator = RandomGenerator(seed: 4)
        let x = (0..<3).map { _ in
            Tensor.randomNormal([2, 3, 150, 6], using: generator, dtype: .float64).requiringGrad()
        }
        let mask = Tensor.random(in: 0..<5, [2, 150], using: generator) .> 0
        for paddingMask in [nil, mask] {
            let found = core(x[0], x[1], x[2], paddingMask: paddingMask)
            let expected = core.reference(x[0], x[1], x[2], paddingMask: paddingMask)
            #expect(found.deviation(from: expected) < 1e-12)
            let slopes = [found, expected].map { gradients(of: [($0 * $0).sum()], withRespectTo: x) }
            for (a, b) in zip(slopes[0], slopes[1]) {
                #expect(a.flatMap { a in b.map { a.deviation(from: $0) } } ?? 1 < 1e-11)
            }
        }
    }

    @Test(
        arguments: [
            SparsePattern.strided(8), .strided(64, radius: 5), .fixed(block: 8), .fixed(block: 64, columns: 3),
            SparsePattern(.columns(size: 7, count: 1)), .window(radius: 3, dilation: 9), dilations,
        ], [1, 2, 7, 64, 65, 131])
    func anyLengthGivesTheReference(_ pattern: SparsePattern, _ length: Int) {
        for causal in [false, true] {
            let core = SparseCore(pattern, isCausal: causal)
            let generator = RandomGenerator(seed: 4)
            let x = (0..<3).map { _ in
                Tensor.randomNormal([1, 2, length, 6], using: generator, dtype: .float64).requiringGrad()
            }
            let found = core(x[0], x[1], x[2], paddingMask: nil)
            let expected = core.reference(x[0], x[1], x[2], paddingMask: nil)
            #expect(found.deviation(from: expected) < 1e-12)
            let slopes = [found, expected].map { gradients(of: [($0 * $0).sum()], withRespectTo: x) }
            // Where every query sees but itself, those of queries and keys are 0: no scale to measure by.
            for (a, b) in zip(slopes[0], slopes[1]) {
                #expect(a.flatMap { a in b.map { (a - $0).abs().maximum().item() } } ?? 1 < 1e-11)
            }
        }
    }

    /// The kernel says of itself that it has no second derivative.
    private static func isFused(_ pattern: SparsePattern, causal: Bool) -> Bool {
        let core = SparseCore(pattern, isCausal: causal)
        let x = Trial(1).normal([1, 3, 150, 4]).requiringGrad()
        do {
            try withTorchErrors {
                let out = core(x, x, x, paddingMask: nil)
                _ = gradients(of: [out.sum()], withRespectTo: [x], createGraph: true)
            }
            return false
        } catch {
            return "\(error)".contains("attention over intervals cannot be differentiated twice")
        }
    }

    @Test(
        arguments: [
            SparsePattern.strided(12), .fixed(block: 12, columns: 2), .window(radius: 5, dilation: 4), dilations,
            .longformer(radius: 6, dilation: 3), .star(), .bigBird(), .random(block: 4),
            .multihead([SparsePattern(.stride(7)), .window(radius: 2, dilation: 5), .fixed(block: 9)]),
        ], [false, true])
    func theKernelIsTaken(_ pattern: SparsePattern, _ causal: Bool) { #expect(Self.isFused(pattern, causal: causal)) }

    /// Many short runs, and columns among the classes of a stride.
    @Test(arguments: [SparsePattern.custom(picture: scatteredRows), .strided(7).union(.fixed(block: 10))])
    func theKernelIsNotTaken(_ pattern: SparsePattern) { #expect(!Self.isFused(pattern, causal: true)) }

    @Test func theSeedOfRandomBlocksIsSaved() throws {
        let pattern = SparsePattern.bigBird(block: 2)
        let cores = (1...2).map { SparseCore(pattern, isCausal: false, using: RandomGenerator(seed: UInt64($0))) }
        let x = Trial(1).normal([1, 2, 60, 4])
        let outs = cores.map { $0(x, x, x, paddingMask: nil) }
        #expect(outs[0].deviation(from: outs[1]) > 1e-6)
        try cores[1].load(cores[0].stateDictionary())
        #expect(cores[1](x, x, x, paddingMask: nil).isIdentical(to: outs[0]))
    }

    @Test func whatDependsOnTheEndCannotStream() throws {
        for pattern in [SparsePattern.star(), .bigBird(), .random(), .global([-1]), .custom(picture: ["#"])] {
            let core = SparseCore(pattern, isCausal: true)
            #expect(!core.canStream)
            var state = core.initialState(CoreShape(batch: 1, heads: 1, headDim: 2, valueDim: 2))
            let x = Tensor.ones([1, 1, 1, 2])
            let error = #expect(throws: TorchError.self) {
                try withTorchErrors { core.prefill(x, x, x, paddingMask: nil, state: &state) }
            }
            #expect(try #require(error).description.contains("so it cannot stream"))
        }
    }

    @Test func moreKeysThanQueriesAreRefused() throws {
        let (q, k) = (Tensor.ones([1, 1, 3, 2]), Tensor.ones([1, 1, 4, 2]))
        for core in [SparseCore(.window(radius: 1), isCausal: false), SparseCore(.star(), isCausal: true)] {
            let error = #expect(throws: TorchError.self) { try withTorchErrors { core(q, k, k, paddingMask: nil) } }
            #expect(try #require(error).description.contains("as many keys as queries"))
        }
        let custom = SparseCore(.custom(picture: ["##", "##"]), isCausal: false)
        let error = #expect(throws: TorchError.self) { try withTorchErrors { custom(q, q, q, paddingMask: nil) } }
        #expect(try #require(error).description.contains("for sequences of up to 2 tokens; got q [1, 1, 3, 2]"))
    }
}

@Suite struct SparseOptionsTests {
    @Test(arguments: [
        ("[]", "sparse: patterns must name at least one"),
        ("[{\"type\": \"union\", \"of\": []}]", "sparse: patterns must name at least one"),
        ("[{\"type\": \"window\", \"radius\": -1}]", "sparse: window's radius must be 0 to 1073741824, not -1"),
        (
            "[{\"type\": \"window\", \"radius\": 1, \"dilation\": 0}]",
            "sparse: window's dilation must be 1 to 1073741824, not 0"
        ),
        ("[{\"type\": \"stride\", \"stride\": 0}]", "sparse: stride's stride must be 1 to 1073741824, not 0"),
        ("[{\"type\": \"block\", \"size\": 0}]", "sparse: block's size must be 1 to 1073741824, not 0"),
        (
            "[{\"type\": \"columns\", \"size\": 4, \"count\": 5}]",
            "sparse: columns' count must be 1 to its size 4, not 5"
        ),
        ("[{\"type\": \"global\", \"tokens\": []}]", "sparse: global's tokens must name at least one"),
        ("[{\"type\": \"star\", \"ring\": 0}]", "sparse: star's ring must be 1 to 1073741824, not 0"),
        ("[{\"type\": \"bigbird\", \"random\": -1}]", "sparse: bigbird's random must be at least 0, not -1"),
        (
            "[{\"type\": \"random\", \"randomBlocks\": []}]",
            "sparse: random's randomBlocks must have one list of one length for each head"
        ),
        (
            "[{\"type\": \"bigbird\", \"randomBlocks\": [[[-1]]]}]",
            "sparse: bigbird's randomBlocks must be at least 0, not -1"
        ),
        (
            "[{\"type\": \"custom\", \"picture\": [\"#.\"]}]",
            "sparse: custom's picture must have as many rows as columns"
        ),
        (
            "[{\"type\": \"custom\", \"picture\": [\"#.\", \"##\"]}]",
            "sparse: the custom mask is for sequences of up to 2 tokens, the model's are up to 9"
        ),
    ]) func refusals(_ patterns: String, _ text: String) throws {
        let json = "{\"name\": \"sparse\", \"patterns\": \(patterns)}"
        #expect(throws: ConfigurationError(text)) {
            let context = try MixerContext(
                modelDim: 8, heads: 2, isCausal: true, maximumLength: 9, generator: RandomGenerator(seed: 1))
            _ = try JSONDecoder().decode(MixerConfiguration.self, from: Data(json.utf8)).build(context)
        }
    }

    @Test func layersHavePatternsInTurn() throws {
        let options = SparseOptions(.window(radius: 2), .global([0]), headsMode: .sequential)
        for layer in 0..<4 {
            var context = try MixerContext(modelDim: 8, heads: 2, isCausal: false, generator: RandomGenerator(seed: 1))
            (context.layer, context.layers) = (layer, 4)
            let built = try #require(options.build(context) as? any CoreHolding).anyCore as? SparseCore
            #expect(try #require(built).pattern == (layer.isMultiple(of: 2) ? .window(radius: 2) : .global([0])))
        }
    }
}

@Suite struct NGramOptionsTests {
    @Test(arguments: [1, 0, -3, 1 << 31]) func sizesOutOfRange(_ ngram: Int) throws {
        let context = try MixerContext(modelDim: 8, heads: 2, isCausal: true, generator: RandomGenerator(seed: 1))
        #expect(throws: ConfigurationError("ngram: ngram must be 2 to 1073741824, not \(ngram)")) {
            try NGramOptions(ngram: ngram).build(context)
        }
    }

    @Test func bidirectionalModels() throws {
        let context = try MixerContext(modelDim: 8, heads: 2, isCausal: false, generator: RandomGenerator(seed: 1))
        #expect(throws: ConfigurationError.self) { try MixerConfiguration("ngram").build(context) }
        #expect(throws: ConfigurationError.self) { try NGramOptions().build(context) }
    }

    /// N - 1 positions, the own one included.
    @Test func aTokenIsSeenSoManyTimes() {
        let core = NGramCore(ngram: 4)
        let x = Trial(1).normal([1, 1, 9, 3])
        let v = Tensor.eye(9, dtype: .float64).reshaped(1, 1, 9, 9)
        let weights = core(x, x, v, paddingMask: nil).reshaped(9, 9) .> 0
        #expect(weights.isIdentical(to: SparsePattern.window(radius: 2).mask(length: 9, isCausal: true).selected(0, 0)))
    }
}
