import SequenceMixers
import Testing
import Torch
import TorchNN

/// Sparse-MLP's settings.
@Suite struct SparseMLPOptionsTests {
    private func build(_ json: String, length: Int? = 9, layer: Int = 0, layers: Int = 1) throws -> any SequenceMixer {
        try MixerConfiguration("sparse-mlp", json: json).build(
            .small(causal: false, maximumLength: length, layer: layer, layers: layers))
    }

    @Test(arguments: [
        ("\"tokenExperts\": 0", "tokenExperts must be from 1 to 1000000, not 0"),
        ("\"channelHiddenDim\": 0", "channelHiddenDim must be from 1 to 1000000, not 0"),
        ("\"sparseBlocks\": 0", "sparseBlocks must be from 1 to 1000000, not 0"),
        ("\"tokenChoices\": 5", "tokenChoices 5 is above the 4 tokenExperts"),
        ("\"channelExperts\": 1", "channelChoices 2 is above the 1 channelExperts"),
        ("\"capacityFactor\": 0", "capacityFactor must be above 0 and at most 1e6, not 0.0"),
        ("\"balance\": -1", "balance must be finite and not negative, is -1.0"),
        ("\"epsilon\": 0", "epsilon must be above 0, not 0.0"),
        ("\"batchPriority\": true", "batchPriority would be ignored without a capacityFactor"),
        (
            "\"representedDim\": 3, \"reRepresent\": false",
            "representedDim would be ignored with reRepresent: false"
        ),
        ("\"length\": 8", "length 8 is not the model's 9"),
    ]) func refusals(_ json: String, _ text: String) throws {
        #expect(throws: ConfigurationError("sparse-mlp: \(text)")) { try build(json) }
    }

    @Test func aLengthIsNeeded() {
        let text = "sparse-mlp: its weights are for positions, so it needs the length of all sequences"
        #expect(throws: ConfigurationError(text)) { try build("", length: nil) }
    }

    @Test func sizesAreThePapers() throws {
        let block = try #require(try build("") as? SparseMLP)
        #expect(
            block.inward?.channel.weight.value.shape == [4, 8] && block.inward?.token.weight.value.shape == [18, 9])
        #expect(
            block.outward?.channel.weight.value.shape == [8, 4] && block.outward?.token.weight.value.shape == [9, 18])
        #expect(block.tokenExperts.up.value.shape == [4, 4, 18] && block.channelExperts.up.value.shape == [4, 32, 8])
        #expect(block.tokenExperts.choices == 1 && block.channelExperts.choices == 2)
    }

    @Test func theFirstBlocksAreDense() throws {
        for layer in 0..<5 {
            let block = try build("\"sparseBlocks\": 2", layer: layer, layers: 5)
            #expect((block is DenseMLP) == (layer < 3) && block.isWholeBlock, "\(layer)")
        }
    }

    @Test func anotherLengthIsRefused() throws {
        for block in [try build(""), try build("\"sparseBlocks\": 1", layers: 2)] {
            let error = #expect(throws: TorchError.self) { try withTorchErrors { block(.ones([1, 8, 8])) } }
            let text = "expected x [batch, 9, 8], since its weights are for positions; got [1, 8, 8]"
            #expect(error?.description == "\(type(of: block)): \(text)")
        }
    }
}

/// What the block and its experts do.
@Suite struct SparseMLPTests {
    private func block(_ change: (inout SparseMLPOptions) -> Void = { _ in }) throws -> SparseMLP {
        var options = SparseMLPOptions()
        options.length = 7
        change(&options)
        let context = try MixerContext(
            modelDim: 6, heads: 1, isCausal: false, generator: RandomGenerator(seed: 5))
        let block = try #require(try options.build(context) as? SparseMLP)
        block.to(.float64)
        return block
    }

    private func experts(_ capacity: ExpertCapacity, priority: Bool = false, choices: Int = 2) -> MixtureOfExperts {
        let experts = MixtureOfExperts(
            5, hiddenDim: 4, experts: 3, choices: choices, capacity: capacity, hasPriority: priority,
            using: RandomGenerator(seed: 2))
        experts.to(.float64)
        experts.gate.value = Trial(8).normal([5, 3])
        experts.evaluate()
        return experts
    }

    /// What the padded tokens hold makes no difference to the others.
    @Test(arguments: [nil, 0.8]) func paddedTokensCountForNothing(_ capacity: Double?) throws {
        let sparse = try block { $0.capacityFactor = capacity }
        let dense = DenseMLP(
            length: 7, modelDim: 6, tokenHiddenDim: 3, channelHiddenDim: 5, using: RandomGenerator(seed: 1))
        dense.to(.float64)
        for mixer in [sparse, dense] as [any SequenceMixer] {
            mixer.evaluate()
            let trial = Trial(6)
            let x = trial.normal([2, 7, 6])
            let mask = rightPadding([7, 4], of: 7)
            let other = x.masked(where: (.!mask).unsqueezed(2), with: 1e4)
            let (found, expected) = (mixer(other, paddingMask: mask), mixer(x, paddingMask: mask))
            let real = mask.unsqueezed(2)
            #expect(
                found.masked(where: .!real, with: 0).deviation(from: expected.masked(where: .!real, with: 0)) < 1e-12)
        }
    }

    /// Gradients of all parameters, those of the choice's weights included.
    @Test(arguments: [nil, 0.7]) func formsAgreeInTheGradientsOfAllParameters(_ capacity: Double?) throws {
        let block = try block {
            $0.capacityFactor = capacity
            $0.tokenChoices = 2
        }
        block.evaluate()
        for parameter in block.parameters() {
            parameter.value =
                .randomNormal(
                    parameter.value.shape, using: RandomGenerator(seed: 3), dtype: .float64) * 0.5
        }
        let trial = Trial(7)
        let (x, weight) = (trial.normal([2, 7, 6]), trial.normal([2, 7, 6]))
        let results = [false, true].map { usesReference in
            block.usesReference = usesReference
            return gradients(
                of: [block(x)], weightedBy: [weight], withRespectTo: block.parameters().map(\.value))
        }
        for (name, (found, expected)) in zip(block.namedParameters().map(\.name), zip(results[0], results[1])) {
            let deviation = try #require(found).deviation(from: try #require(expected))
            #expect(deviation < 1e-9, "\(name)")
        }
    }

    @Test(arguments: [1, 2]) func groupsAreServedByTheirOwnWeights(_ choices: Int) {
        let experts = experts(.unlimited, choices: choices)
        let t = Trial(3).normal([11, 5])
        let routing = experts.route(t)
        #expect(experts(t, routing).deviation(from: experts.reference(t, routing)) < 1e-12)
        #expect(routing.isKept.all().integerItem() == 1)
        let sums = routing.gates.sum(1)
        let weights = matmul(t, experts.gate.value).softmax().topK(choices).values.sum(1)
        #expect(sums.deviation(from: weights) < 1e-12)
    }

    /// Served in the order of the batch, or of the largest weight, first choices before second ones, counted by hand.
    @Test(arguments: [false, true], [0, 1, 2, 5, 11]) func nobodyIsServedBeyondTheCapacity(
        _ priority: Bool, _ count: Int
    ) {
        let experts = experts(.count(count), priority: priority)
        let t = Trial(4).normal([11, 5])
        let routing = experts.route(t)
        let chosen = routing.experts.scalars(as: Int.self)
        let largest = matmul(t, experts.gate.value).softmax().maximum(1).scalars(as: Double.self)
        let order = (0..<11).sorted { priority ? largest[$0] > largest[$1] : $0 < $1 }
        var room = [count, count, count]
        var expected = [Bool](repeating: false, count: 22)
        for choice in 0..<2 {
            for item in order where room[chosen[2 * item + choice]] > 0 {
                room[chosen[2 * item + choice]] -= 1
                expected[2 * item + choice] = true
            }
        }
        #expect(routing.isKept.scalars(as: Bool.self) == expected)
        #expect(experts(t, routing).deviation(from: experts.reference(t, routing)) < 1e-12)
    }

    /// ⌈11 · 2 · 0.4 / 3⌉ = 3 items for each expert.
    @Test func capacitiesAreSharesOfAllChoices() {
        let t = Trial(4).normal([11, 5])
        let (share, count) = (experts(.factor(0.4)).route(t), experts(.count(3)).route(t))
        #expect(share.isKept.isIdentical(to: count.isKept))
        #expect(share.isKept.all().integerItem() == 0)
    }

    /// Nothing is lost or changed where routing is disturbed as before.
    @Test func noiseIsReplayedByASavedGenerator() throws {
        let generator = RandomGenerator(seed: 9)
        var options = SparseMLPOptions()
        options.length = 7
        let context = try MixerContext(modelDim: 6, heads: 1, isCausal: false, generator: generator)
        let block = try options.build(context)
        let x = Trial(5).normal([8, 7, 6], .float32)
        let state = generator.state
        let first = block(x)
        let second = block(x)
        generator.state = state
        #expect(block(x).isIdentical(to: first))
        #expect(!second.isIdentical(to: first))
        block.evaluate()
        #expect(block(x).isIdentical(to: block(x)))
    }

    @Test func theBalanceLossIsThatOfTheLastPassInTraining() throws {
        let block = try block()
        #expect(block.auxiliaryLoss == nil)
        let x = Trial(5).normal([2, 7, 6])
        _ = block(x)
        let loss = try #require(block.auxiliaryLoss)
        #expect(loss.item() > 0 && loss.item() < 1)
        let inward = try #require(block.inward)
        let found = gradients(
            of: [loss], withRespectTo: [block.tokenExperts.gate.value, inward.token.weight.value])
        #expect(found.allSatisfy { ($0?.abs().maximum().item() ?? 0) > 0 })
        block.evaluate()
        _ = block(x)
        #expect(block.auxiliaryLoss == nil)
        let unbalanced = try self.block { $0.balance = 0 }
        _ = unbalanced(x)
        #expect(unbalanced.auxiliaryLoss == nil)
    }

    /// Even use of all experts is worth nothing, one expert for all the most.
    @Test func theBalanceLossFallsWithEvenness() {
        let experts = experts(.unlimited, choices: 1)
        let t = Tensor.eye(3, dtype: .float64).padded(1, after: 2)
        experts.gate.value = Tensor.eye(3, dtype: .float64).padded(0, after: 2) * 20
        let even = experts.route(t)
        #expect(even.importanceLoss.item() < 1e-9 && even.loadLoss.item() < 1e-9)
        let one = experts.route(t.sliced(0, 0..<1))
        #expect(abs(one.importanceLoss.item() - 2) < 1e-6)  // (0, 0, 3): variance 2, mean 1
        #expect(one.loadLoss.item() > 1.9)
        #expect(experts.route(t, mask: Tensor([true, false, false])).importanceLoss.item() > 1.9)
        #expect(experts.route(t, mask: Tensor([false, false, false])).importanceLoss.item() == 0)
    }

    /// Work goes by the choices, not by the experts: all experts on all items would be 1,000 times as much.
    @Test func manyExpertsCostNoMore() {
        let experts = MixtureOfExperts(
            16, hiddenDim: 16, experts: 1_000, choices: 1, using: RandomGenerator(seed: 2))
        let t = Trial(4).normal([4_000, 16], .float32)
        let start = ContinuousClock.now
        let y = experts(t, experts.route(t))
        y.sum().backward()
        #expect(ContinuousClock.now - start < .seconds(5))
        #expect(experts.up.grad?.shape == [1_000, 16, 16])
    }
}
