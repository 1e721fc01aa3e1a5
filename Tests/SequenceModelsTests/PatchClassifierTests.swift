import SequenceMixers
import SequenceModels
import Testing
import Torch
import TorchNN

@Suite struct PatchClassifierTests {
    private let shape = ImageShape(channels: 3, height: 4, width: 6)

    private func classifier(
        _ mixer: String = "softmax", _ change: (inout ModelConfiguration) -> Void = { _ in }
    ) throws -> PatchClassifier {
        var configuration = smallConfiguration(try MixerConfiguration(mixer))
        configuration.patchSize = 2
        change(&configuration)
        return try PatchClassifier(configuration, shape, classes: 5, using: RandomGenerator(seed: 3))
    }

    /// A patch is a square of the image, with all its channels.
    @Test func patchesAreSquares() throws {
        let model = try classifier { $0.position = .none }
        #expect(model.patch.weight.value.shape == [8, 12])
        var tokens: [Int: Set<Int>] = [:]
        for pixel in 0..<72 {
            let (row, column) = (pixel / 6 % 4, pixel % 6)
            tokens[(row / 2) * 3 + column / 2, default: []].insert(pixel)
        }
        #expect(tokens.count == 6 && tokens.values.allSatisfy { $0.count == 12 })
        // Without positions, and with the mean of all tokens, exchanging two patches changes nothing.
        let image = Tensor.random(in: 0..<256, [72], using: RandomGenerator(seed: 4)).scalars(as: Int.self)
        var exchanged = image
        for (one, other) in zip(tokens[0, default: []].sorted(), tokens[5, default: []].sorted()) {
            exchanged.swapAt(one, other)
        }
        let y = model(Tensor(image, shape: [1, 72]))
        #expect(model(Tensor(exchanged, shape: [1, 72])).deviation(from: y) < 1e-5)
        exchanged.swapAt(0, 1)
        #expect(model(Tensor(exchanged, shape: [1, 72])).deviation(from: y) > 1e-4)
    }

    @Test(arguments: [PositionKind.none, .learned, .sinusoidal, .axial, .rotary], ["softmax", "sparse-mlp", "gmlp"])
    func positionsAndMixers(_ position: PositionKind, _ mixer: String) throws {
        if position == .rotary && mixer != "softmax" { return }
        let model = try classifier(mixer) {
            $0.position = position
            $0.pooling = position == .none ? .first : .mean
        }
        let pixels = Tensor.random(in: 0..<256, [3, 72], using: RandomGenerator(seed: 4))
        model.evaluate()
        let y = model(pixels)
        #expect(y.shape == [3, 5] && y.isFinite().all().integerItem() == 1)
        for row in 0..<3 {
            let alone = model(pixels.sliced(0, row..<row + 1))
            #expect(y.sliced(0, row..<row + 1).deviation(from: alone) < 1e-5)
        }
    }

    @Test func whatIsNoImageClassifierIsRefused() throws {
        func refusal(_ change: (inout ModelConfiguration) -> Void) -> String {
            (#expect(throws: ConfigurationError.self) { try classifier("softmax", change) })?.description ?? ""
        }
        #expect(refusal { $0.patchSize = 3 } == "patchSize 3 does not divide images of 4 by 6 pixels")
        #expect(refusal { $0.patchSize = 0 } == "patchSize must be from 1 to 100000, not 0")
        #expect(refusal { $0.position = .sinusoidalConcatenated }.contains("sinusoidal-concatenated"))
        let configuration = smallConfiguration(try MixerConfiguration("softmax"))
        #expect(throws: ConfigurationError("a classifier needs at least 2 classes, not 1")) {
            try PatchClassifier(configuration, shape, classes: 1, using: RandomGenerator(seed: 3))
        }
        let model = try classifier()
        let error = #expect(throws: TorchError.self) { try withTorchErrors { model(.zeros([2, 71])) } }
        #expect(error?.description == "PatchClassifier: expected pixels [batch, 72]; got [2, 71]")
    }

    @Test func descriptionsBuildIt() throws {
        var configuration = smallConfiguration(try MixerConfiguration("softmax"))
        configuration.patchSize = 2
        var description = try ModelDescription(image: shape, classes: 5, model: configuration)
        #expect(description.maximumLength == 6)
        guard case .image(let model) = try description.build(using: RandomGenerator(seed: 1)) else {
            Issue.record("no image classifier")
            return
        }
        #expect(model.shape == shape && model.classes == 5)
        description.image = nil
        #expect(throws: ConfigurationError("an image classifier's description needs the sizes of its images")) {
            try description.build(using: RandomGenerator(seed: 1))
        }
        configuration.patchSize = 5
        #expect(throws: ConfigurationError.self) {
            try ModelDescription(image: shape, classes: 5, model: configuration)
        }
    }
}
