import Foundation
import Testing
import Torch
import TorchNN

@testable import SequenceMixers

@Suite struct TransformerLSTests {
    private func causal(_ positions: LongShortPositionKind = .transformerXL) -> CausalLongShortAttention {
        let layer = CausalLongShortAttention(
            modelDim: 8, heads: 2, window: 12, chunk: 5, rank: 2, positions: positions, using: RandomGenerator(seed: 1))
        layer.to(.float64)
        return layer
    }

    /// More than a thousand queries: one softmax over ranges of keys; composed, several groups, each of which is computed again
    /// for its gradient.
    @Test(arguments: [LongShortPositionKind.transformerXL, .none], [0, 20])
    func groupsAreTheWhole(_ positions: LongShortPositionKind, _ cached: Int) {
        let layer = causal(positions)
        let trial = Trial(1)
        let x = trial.normal([2, 1500, 8]).requiringGrad()
        let cache = cached == 0 ? nil : trial.normal([2, cached, 8]).requiringGrad()
        let mask = cached == 0 ? rightPadding([1500, 700], of: 1500) : nil
        let weight = trial.normal([2, 1500, 8])
        let inputs = [x] + [cache].compactMap { $0 } + layer.parameters().map(\.value)
        let forms = [(false, false), (false, true), (true, false)].map { form -> [Tensor] in
            (layer.usesReference, layer.isComposed) = form
            let out = layer(x, cache: cache, paddingMask: mask)
            let kept = mask.map { out.masked(where: (.!$0).unsqueezed(2), with: 0) } ?? out
            let found = gradients(of: [kept], weightedBy: [weight], withRespectTo: inputs)
            return [kept] + found.map { $0 ?? .zeros([1], dtype: .float64) }
        }
        let scale = forms[2].dropFirst().map { $0.abs().maximum().item() }.max() ?? 1
        for form in forms.dropLast() {
            for (found, expected) in zip(form, forms[2]) {
                #expect((found - expected).abs().maximum().item() <= 1e-9 * max(scale, 1))
            }
        }
    }

    /// A cache that is not a multiple of the window's or the segments' size would cut a segment in two.
    @Test func cachesOfAnotherSizeAreRefused() throws {
        let layer = causal()
        let x = Tensor.ones([2, 3, 8], dtype: .float64)
        for shape in [[2, 4, 8], [1, 5, 8], [2, 5, 7]] {
            let error = #expect(throws: TorchError.self) {
                try withTorchErrors { layer(x, cache: .ones(shape, dtype: .float64), paddingMask: nil) }
            }
            #expect(
                try #require(error).description
                    == "CausalLongShortAttention: expected a cache [2, a multiple of 5, 8]; got \(shape)")
        }
    }

    @Test(arguments: [(50, 8, false), (50, 7, true), (9, 64, false), (64, 1, false), (1, 8, false), (1, 8, true)])
    func sequencesOfAnySize(_ length: Int, _ window: Int, _ cls: Bool) {
        let layer = LongShortAttention(
            modelDim: 8, heads: 2, window: window, rank: 3, shape: .sequence(cls: cls), using: RandomGenerator(seed: 1))
        layer.to(.float64)
        let x = Trial(4).normal([2, length, 8]).requiringGrad()
        for mask in [nil, rightPadding([length, (length + 1) / 2], of: length)] {
            let forms = [(false, false), (false, true), (true, false)].map { form -> [Tensor] in
                (layer.usesReference, layer.isComposed) = form
                let out = layer(x, paddingMask: mask)
                return [out] + gradients(of: [out.square().sum()], withRespectTo: [x]).compactMap { $0 }
            }
            for form in forms.dropLast() {
                for (found, expected) in zip(form, forms[2]) { #expect(found.deviation(from: expected) < 1e-9) }
            }
        }
    }

    @Test(arguments: [(7, 3, 1), (6, 4, 0), (5, 9, 2), (4, 1, 1)])
    func gridsOfAnySize(_ side: Int, _ window: Int, _ globals: Int) {
        let layer = LongShortAttention(
            modelDim: 8, heads: 2, window: window, rank: 3, shape: .grid(side: side, globalTokens: globals),
            using: RandomGenerator(seed: 1))
        layer.to(.float64)
        let trial = Trial(2)
        let length = side * side + globals
        let x = trial.normal([2, length, 8]).requiringGrad()
        for mask in [nil, rightPadding([length, length - 3], of: length)] {
            let forms = [false, true].map { usesReference -> [Tensor] in
                layer.usesReference = usesReference
                let out = layer(x, paddingMask: mask)
                return [out] + gradients(of: [out.square().sum()], withRespectTo: [x]).compactMap { $0 }
            }
            for (found, expected) in zip(forms[0], forms[1]) { #expect(found.deviation(from: expected) < 1e-9) }
        }
    }

    @Test func gridsOfAnotherLengthAreRefused() throws {
        let layer = LongShortAttention(
            modelDim: 8, heads: 2, window: 2, rank: 3, shape: .grid(side: 3, globalTokens: 1),
            using: RandomGenerator(seed: 1))
        let error = #expect(throws: TorchError.self) { try withTorchErrors { layer(.ones([1, 9, 8])) } }
        #expect(
            try #require(error).description
                == "LongShortAttention: expected x [batch, 10, 8], 1 global tokens and a grid of 3 × 3; got [1, 9, 8]")
    }

    /// 16,384 tokens, bidirectional: a matrix of scores would be a gigabyte a head.
    @Test func longSequencesNeedNoMatrix() {
        let layer = LongShortAttention(
            modelDim: 4, heads: 1, window: 16, rank: 2, shape: .sequence(cls: true), using: RandomGenerator(seed: 1))
        let x = Trial(3).normal([1, 16_384, 4], .float32).requiringGrad()
        #expect(gradients(of: [layer(x).sum()], withRespectTo: [x])[0]?.isAllFinite ?? false)
    }
}

@Suite struct TransformerLSOptionsTests {
    private func refusal(_ json: String, causal: Bool) throws -> String {
        let error = #expect(throws: ConfigurationError.self, "\(json)") {
            let context = try MixerContext(
                modelDim: 8, heads: 2, isCausal: causal, maximumLength: 20, generator: RandomGenerator(seed: 1))
            let text = Data("{\"name\": \"transformer-ls\", \(json)}".utf8)
            _ = try JSONDecoder().decode(MixerConfiguration.self, from: text).build(context)
        }
        return try #require(error).description
    }

    @Test(arguments: [
        ("\"window\": 0", true, "window must be 1 to 1048576, not 0"),
        ("\"rank\": 0", true, "rank must be 1 to 1048576, not 0"),
        ("\"chunk\": -1", true, "chunk must be 1 to 1048576, not -1"),
        ("\"side\": 0", false, "side must be 1 to 1048576, not 0"),
        ("\"side\": 2, \"globalTokens\": -1", false, "globalTokens must be 0 to 1048576, not -1"),
        ("\"epsilon\": -1", false, "epsilon must be finite and not negative, is -1.0"),
        (
            "\"window\": 15", true,
            "window 15 is below chunk 16, so some tokens would be seen neither in the window nor in a closed segment"
        ),
        ("\"chunk\": 4", false, "chunk would be ignored: only the causal form has segments"),
        ("\"positions\": \"none\"", false, "positions would be ignored: only the causal form knows distances"),
        ("\"cls\": true", true, "cls would be ignored: a token that sees everything is bidirectional"),
        ("\"side\": 3", true, "side would be ignored: a grid is bidirectional"),
        ("\"globalTokens\": 3", false, "globalTokens would be ignored: it belongs to a grid, with side"),
        ("\"side\": 3, \"cls\": true", false, "cls would be ignored: a grid has globalTokens"),
        ("\"side\": 5", false, "side 5 with 1 global tokens is more than the model's 20 tokens"),
    ]) func refusals(_ json: String, _ causal: Bool, _ text: String) throws {
        #expect(try refusal(json, causal: causal) == "transformer-ls: " + text)
    }
}
