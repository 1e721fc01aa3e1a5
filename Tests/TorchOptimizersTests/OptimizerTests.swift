import Testing
import Torch
import TorchNN
import TorchOptimizers

typealias NamedParameters = [(name: String, parameter: Parameter)]

/// An optimizer under the name of its golden run.
struct Maker: CustomTestStringConvertible, Sendable {
    let testDescription: String
    let make: @Sendable (NamedParameters) -> any Optimizer

    init(_ name: String, _ make: @escaping @Sendable (NamedParameters) -> any Optimizer) {
        testDescription = name
        self.make = make
    }

    static let all = [
        Maker("sgd") { SGD($0, learningRate: 0.1) },
        Maker("sgd-momentum") { SGD($0, learningRate: 0.1, momentum: 0.9, weightDecay: 0.02) },
        Maker("sgd-nesterov") { SGD($0, learningRate: 0.1, momentum: 0.8, nesterov: true) },
        Maker("adam") { Adam($0, learningRate: 0.05, betas: (0.8, 0.95)) },
        Maker("adam-decay") { Adam($0, learningRate: 0.05, weightDecay: 0.1) },
        Maker("adamw") { AdamW($0, learningRate: 0.05, betas: (0.8, 0.95), weightDecay: 0.1) },
        Maker("adamw-matrices") { AdamW($0, learningRate: 0.05, weightDecay: 0.2, decayMatricesOnly: true) },
        Maker("radam") { RAdam($0, learningRate: 0.05, weightDecay: 0.1) },
        Maker("radam-decoupled") {
            RAdam($0, learningRate: 0.05, betas: (0.8, 0.99), weightDecay: 0.1, decouplesWeightDecay: true)
        },
    ]
}

@Suite struct OptimizerTests {
    private let golden: Golden

    init() throws { golden = try Golden.load() }

    private func train(_ optimizer: any Optimizer, _ parameters: NamedParameters, _ steps: Range<Int>) {
        for step in steps {
            golden.setGradients(parameters, step: step)
            optimizer.step()
        }
    }

    private func weights(_ parameters: NamedParameters) -> [String: Tensor] {
        Dictionary(uniqueKeysWithValues: parameters.map { ($0.name, $0.parameter.value.detached().cloned()) })
    }

    @Test(arguments: Maker.all)
    func tenStepsAreThoseOfPyTorch(_ maker: Maker) throws {
        let parameters = golden.parameters()
        let optimizer = maker.make(parameters)
        let expected = try #require(golden.runs[maker.testDescription])
        for step in golden.gradients.indices {
            train(optimizer, parameters, step..<step + 1)
            for (name, numbers) in expected["\(step + 1)"] ?? [:] {
                let found = try #require(weights(parameters)[name])
                let error = found.relativeError(to: numbers.tensor)
                #expect(error < 1e-12, "\(name) after step \(step + 1): relative error \(error)")
            }
        }
        #expect(expected.keys.contains("\(golden.gradients.count)"))
    }

    @Test(arguments: Maker.all, [DType.float64, .float32])
    func aSavedStateContinuesBitForBit(_ maker: Maker, _ dtype: DType) throws {
        let parameters = golden.parameters(dtype)
        let optimizer = maker.make(parameters)
        train(optimizer, parameters, 0..<4)
        let state = optimizer.state.mapValues { $0.cloned() }
        let middle = weights(parameters)
        train(optimizer, parameters, 4..<10)

        // In another order, as after a change of the model's declaration.
        let resumed: NamedParameters = parameters.reversed().map {
            ($0.name, Parameter(middle[$0.name] ?? $0.parameter.value))
        }
        let other = maker.make(resumed)
        try other.load(state: state)
        train(other, resumed, 4..<10)
        let (expected, found) = (weights(parameters), weights(resumed))
        #expect(expected.allSatisfy { name, tensor in found[name]?.isIdentical(to: tensor) == true })
        let (last, otherLast) = (optimizer.state, other.state)
        #expect(last.keys == otherLast.keys)
        #expect(last.allSatisfy { name, tensor in otherLast[name]?.isIdentical(to: tensor) == true })
        #expect(!weights(parameters).contains { middle[$0.key]?.isIdentical(to: $0.value) == true })
    }

    @Test func aLoadedStateIsACopy() throws {
        let parameters = golden.parameters()
        let optimizer = SGD(parameters, learningRate: 0.1, momentum: 0.9)
        train(optimizer, parameters, 1..<2)
        let state = optimizer.state
        let kept = state.mapValues { $0.cloned() }
        let other = SGD(parameters, learningRate: 0.1, momentum: 0.9)
        try other.load(state: state)
        train(other, parameters, 2..<3)
        #expect(state.allSatisfy { kept[$0.key]?.isIdentical(to: $0.value) == true })
    }

    @Test func aStateThatDoesNotFitIsRefused() throws {
        let parameters = golden.parameters()
        let optimizer = AdamW(parameters)
        train(optimizer, parameters, 0..<1)
        let state = optimizer.state.mapValues { $0.cloned() }
        // The golden gradients leave 'scale' out of the first step.
        #expect(
            Set(state.keys) == [
                "bias.step", "bias.mean", "bias.square", "weight.step", "weight.mean", "weight.square", "scale.step",
            ])
        let changes: [(String, (inout [String: Tensor]) -> Void)] = [
            ("missing 'bias.mean'", { $0["bias.mean"] = nil }),
            ("missing 'scale.step'", { $0["scale.step"] = nil }),
            ("unexpected 'scale.mean'", { $0["scale.mean"] = .zeros([2, 2], dtype: .float64) }),
            ("unexpected 'head.step'", { $0["head.step"] = Tensor(1) }),
            ("'bias.mean' expected float64 [4], found float64 [5]", { $0["bias.mean"] = .zeros([5], dtype: .float64) }),
            ("'bias.mean' expected float64 [4], found float32 [4]", { $0["bias.mean"] = .zeros([4]) }),
            ("'bias.step' expected an int64 count, found float32 []", { $0["bias.step"] = Tensor(Float(1)) }),
            ("'bias.step' expected an int64 count, found int64 []", { $0["bias.step"] = Tensor(-1) }),
        ]
        for (problem, change) in changes {
            var damaged = state
            change(&damaged)
            let error = #expect(throws: OptimizerStateError.self) { try optimizer.load(state: damaged) }
            #expect(error?.description == "not the state of this AdamW: \(problem)")
        }
        #expect(optimizer.state.allSatisfy { state[$0.key]?.isIdentical(to: $0.value) == true })
    }

    @Test(arguments: Maker.all)
    func frozenParametersStayAsTheyAre(_ maker: Maker) throws {
        let parameters = golden.parameters()
        let optimizer = maker.make(parameters)
        train(optimizer, parameters, 1..<3)
        let frozen = try #require(parameters.first { $0.name == "weight" })
        let before = weights(parameters)
        let state = optimizer.state.mapValues { $0.cloned() }
        golden.setGradients(parameters, step: 3)
        frozen.parameter.isTrainable = false
        optimizer.step()
        for (name, tensor) in weights(parameters) {
            #expect(before[name]?.isIdentical(to: tensor) == (name == "weight"))
        }
        for (name, tensor) in optimizer.state where name.hasPrefix("weight.") {
            #expect(state[name]?.isIdentical(to: tensor) == true)
        }
        frozen.parameter.isTrainable = true
        train(optimizer, parameters, 4..<5)
        #expect(weights(parameters)["weight"].map { before["weight"]?.isIdentical(to: $0) } == false)
    }

    @Test(arguments: Maker.all)
    func aModelLearns(_ maker: Maker) {
        let generator = RandomGenerator(seed: 1)
        let model = Linear(3, 1, using: generator)
        let optimizer = maker.make(model.namedParameters())
        let x = Tensor.randomNormal([64, 3], using: generator)
        let y = matmul(x, Tensor([1, -2, 0.5] as [Float], shape: [3, 1])) + 0.25
        var losses: [Double] = []
        for _ in 0..<60 {
            optimizer.zeroGradients()
            #expect(model.weight.grad == nil)
            let loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        }
        #expect(losses[59] < 0.5 * losses[0])
        optimizer.learningRate = 0
        let before = model.weight.value.cloned()
        optimizer.step()
        #expect(model.weight.value.isIdentical(to: before))
    }

    @Test func typesMayBeMixed() {
        let parameters: NamedParameters = [
            ("a", Parameter(.ones([3, 2]))), ("b", Parameter(.ones([3], dtype: .float64))),
            ("c", Parameter(.ones([4], dtype: .bfloat16))),
        ]
        let optimizer = AdamW(parameters, learningRate: 0.5)
        for (_, parameter) in parameters { parameter.grad = .ones(like: parameter.value.detached()) }
        optimizer.step()
        for (_, parameter) in parameters { #expect(abs(parameter.value.maximum().item() - 0.495) < 0.01) }
    }

    @Test func gradientsMayLieInMemoryInAnyOrder() {
        let gradient = Tensor.randomNormal([3, 4], using: RandomGenerator(seed: 2))
        let found = [gradient, gradient.transposed().contiguous().transposed()].map { gradient in
            let parameter = Parameter(.ones([3, 4]))
            parameter.grad = gradient
            AdamW([("x", parameter)], learningRate: 0.1).step()
            return parameter.value
        }
        #expect(found[0].isIdentical(to: found[1]))
    }

    @Test func impossibleSettingsAreRefused() {
        let parameters = golden.parameters()
        let messages = [
            misuse { _ = SGD(parameters, learningRate: 0.1, nesterov: true) },
            misuse { _ = SGD(parameters, learningRate: -1) },
            misuse { _ = SGD(parameters, learningRate: 0.1, momentum: 1) },
            misuse { _ = AdamW(parameters, betas: (0.9, 1)) },
            misuse { _ = AdamW(parameters, weightDecay: -0.1) },
            misuse { _ = RAdam(parameters, epsilon: .nan) },
            misuse { _ = RAdam(parameters + parameters) },
        ]
        for (index, message) in messages.enumerated() { #expect(message != nil, "case \(index) was accepted") }
        #expect(messages[0] == "SGD: nesterov needs a momentum above 0")
        #expect(messages[6] == "RAdam: two parameters have the same name")
    }
}

@Suite struct GradientClippingTests {
    @Test(arguments: [0.5, 100])
    func clipsAsPyTorch(_ maximum: Double) throws {
        let golden = try Golden.load()
        let parameters = golden.parameters()
        golden.setGradients(parameters, step: 1)
        let expected = try #require(golden.clipped["\(maximum)"])
        let norm = clipGradientNorm(parameters.map(\.parameter), maximum: maximum)
        #expect(abs(norm - expected.norm) < 1e-12 * norm)
        for (name, parameter) in parameters {
            let found = try #require(parameter.grad)
            #expect(found.relativeError(to: try #require(expected.gradients[name]).tensor) < 1e-12)
        }
    }

    @Test(arguments: [Double.nan, .infinity])
    func reportsANormThatIsNotFinite(_ value: Double) {
        let parameters = [Parameter(.zeros([3])), Parameter(.zeros([2])), Parameter(.zeros([2]))]
        parameters[0].grad = .ones([3])
        parameters[1].grad = Tensor([1, Float(value)])
        #expect(!clipGradientNorm(parameters, maximum: 0.1).isFinite)
        #expect(parameters[0].grad?.isIdentical(to: .ones([3])) == true)
    }

    @Test func nothingHasNoNorm() {
        #expect(clipGradientNorm([], maximum: 1) == 0)
        #expect(clipGradientNorm([Parameter(.ones([2]))], maximum: 1) == 0)
        #expect(misuse { clipGradientNorm([], maximum: 0) } == "clipGradientNorm: expected a maximum above 0, got 0.0")
    }
}
