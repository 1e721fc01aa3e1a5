import Testing
import Torch

@Suite struct CrossEntropyTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var rows: Int
        var classes: Int
        var reduction = LossReduction.mean
        var smoothing = 0.0
        var ignored = -100
        var testDescription: String { "\(rows) × \(classes), \(reduction), smoothing \(smoothing), ignored \(ignored)" }

        var logits: Tensor {
            .randomNormal([rows, classes], using: RandomGenerator(seed: 1), dtype: .float64) * 3
        }
        var targets: Tensor { .random(in: 0..<classes, [rows], using: RandomGenerator(seed: 2)) }
        func callAsFunction(_ t: [Tensor]) -> Tensor {
            crossEntropy(t[0], t[1], reduction: reduction, ignored: ignored, smoothing: smoothing)
        }
    }

    static let cases = [
        Case(rows: 1, classes: 1), Case(rows: 5, classes: 3, ignored: 1), Case(rows: 70, classes: 16),
        Case(rows: 33, classes: 257, smoothing: 0.1), Case(rows: 40, classes: 100, reduction: .none, ignored: 7),
        Case(rows: 40, classes: 65, reduction: .sum, smoothing: 0.3, ignored: 0),
    ]

    @Test(arguments: cases) func givesTheLoopsAndIsTheLogarithm(_ setting: Case) throws {
        try expectKernel([setting.logits, setting.targets]) { [setting($0)] }
        let t = setting.targets
        let logs = setting.logits.logSoftmax()
        let chosen = -logs.gathered(1, t.unsqueezed(1)).squeezed(1)
        let losses = (chosen * (1 - setting.smoothing) - logs.mean(1) * setting.smoothing)
            .masked(where: t .== setting.ignored, with: 0)
        for isa in KernelInstructions.available {
            try KernelInstructions.with(isa) {
                let found = setting([setting.logits, t])
                switch setting.reduction {
                case .none: expectClose(found, losses, 1e-11)
                case .sum: expectClose(found, losses.sum(), 1e-9)
                case .mean: expectClose(found, losses.sum() / (t .!= setting.ignored).to(.float64).sum(), 1e-11)
                }
            }
        }
        if setting.rows < 10 {
            #expect(gradientCheck([setting.logits]) { setting([$0[0], t]) } < 1e-6)
            let second = gradientCheck([setting.logits]) { x in
                withGrad {
                    let leaf = x[0].requiresGrad ? x[0] : x[0].requiringGrad()
                    let loss = setting([leaf, t]).square().sum()
                    return gradients(of: [loss], withRespectTo: [leaf], createGraph: true)[0] ?? leaf
                }
            }
            #expect(second < 1e-5)
        }
    }

    @Test func threadsDoNotMatter() {
        let setting = Case(rows: 500, classes: 100)
        expectSameBitsOnAnyThreads([setting.logits.to(.float32), setting.targets]) { [setting($0)] }
    }

    @Test func farLogitsAndWrongTargets() {
        let far = Tensor([1e4, -1e4, 0] as [Float]).unsqueezed(0)
        #expect(crossEntropy(far, Tensor([0] as [Int])).item() == 0)
        #expect(crossEntropy(far, Tensor([1])).item() == 2e4)
        #expect(crossEntropy(far * Double.nan, Tensor([1])).item().isNaN)
        #expect(torchError { _ = crossEntropy(far, Tensor([3])) }.message.contains("out of bounds"))
    }
}
