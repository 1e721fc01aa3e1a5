// Step programs of the cores that carry sums of products along: see StepCompiling.swift.
import Foundation
import Torch
import TorchNN

extension LinearCore: StepCompilingCore {
    public func compileStep(
        _ q: StepProgram.Vector, _ k: StepProgram.Vector, _ v: StepProgram.Vector, heads: Int, state: LinearState,
        to y: StepProgram.Vector, into program: StepProgram
    ) -> Bool {
        guard v.count / heads <= StepProgram.largestHead else { return false }
        let map = featureMap.kind.elementwise
        guard let phiQ = map == nil ? featureMap.compileStep(q, heads: heads, into: program) : q,
            let phiK = map == nil ? featureMap.compileStep(k, heads: heads, into: program) : k
        else { return false }
        let carried = state.carried
        program.appendCausalLinear(
            phiQ, phiK, v, heads: heads, map: map ?? .none, epsilon: epsilon,
            state: (program.vector(carried.s), nil, program.vector(carried.z)), to: y)
        return true
    }
}

extension FeatureMap {
    /// φ(x) of a random map, head by head; nil, and nothing is appended, where it depends on the whole sequence.
    func compileStep(_ x: StepProgram.Vector, heads: Int, into program: StepProgram) -> StepProgram.Vector? {
        guard !stabilizes, let omega = omega?.value else { return nil }
        let (headDim, columns) = (omega.size(0), omega.size(1))
        let temperature = temperature ?? (kind == .generalizedRelu ? 1 : 1 / Double(headDim).squareRoot())
        // What x is multiplied by goes into Ω.
        let weight = (omega * temperature.squareRoot()).transposed().contiguous()
        let u = program.vector(count: heads * columns)
        program.appendLinear(
            x, weight: weight, activation: kind == .generalizedRelu ? .relu : .identity, heads: heads, to: u)
        let scale = (1 / Double(columns)).squareRoot()
        let features: StepProgram.Features
        switch kind {
        case .favor: features = .positive(temperature: temperature, offset: 0.5 * log(Double(2 * columns)))
        case .rff: features = .fourier(scale: scale)
        case .smoothedRff: features = .smoothedFourier(scale: scale, constant: smoothing)
        case .eluPlusOne, .relu, .sigmoid, .exponential, .generalizedRelu: return u
        }
        let phi = program.vector(count: heads * features.count(of: columns))
        program.appendFeatures(features, x, projected: u, heads: heads, to: phi)
        return phi
    }
}

extension MomentumCore: StepCompilingCore {
    public func compileStep(
        _ q: StepProgram.Vector, _ k: StepProgram.Vector, _ v: StepProgram.Vector, heads: Int, state: MomentumState,
        to y: StepProgram.Vector, into program: StepProgram
    ) -> Bool {
        guard q.count == v.count, v.count / heads <= StepProgram.largestHead else { return false }
        switch state {
        case .heavyBall(let linear):
            let carried = linear.carried
            let momenta = carried.p ?? .zeros(like: carried.s)
            program.appendCausalLinear(
                q, k, v, heads: heads, map: .eluPlusOne, momentum: momentum, stepSize: stepSize, epsilon: epsilon,
                state: (program.vector(carried.s), program.vector(momenta), program.vector(carried.z)), to: y)
        case .adaptive(let adaptive):
            let begun = adaptive.hasBegun.to(.float32).flattened().repeated(heads, dim: 0)
            program.appendAdaptiveMomentum(
                q, k, v, heads: heads, stepSize: stepSize, maximumMomentum: maximumMomentum, epsilon: epsilon,
                state: (
                    program.vector(adaptive.s), program.vector(adaptive.p), program.vector(adaptive.u),
                    program.vector(adaptive.z), program.vector(begun)
                ), to: y)
        }
        return true
    }
}

extension CosFormerCore: StepCompilingCore {
    public func compileStep(
        _ q: StepProgram.Vector, _ k: StepProgram.Vector, _ v: StepProgram.Vector, heads: Int, state: CosFormerState,
        to y: StepProgram.Vector, into program: StepProgram
    ) -> Bool {
        guard state.positions == [program.position], v.count / heads <= StepProgram.largestHead else { return false }
        // Sine and cosine are not negative up to π/2, so that relu may come after them.
        let (phiQ, phiK) = (program.vector(count: 2 * q.count), program.vector(count: 2 * k.count))
        let turned = StepProgram.Features.turned(angle: .pi / 2 / Double(maximumLength), limit: maximumLength)
        program.appendFeatures(turned, q, projected: q, heads: heads, to: phiQ)
        program.appendFeatures(turned, k, projected: k, heads: heads, to: phiK)
        let carried = state.sums.carried
        program.appendCausalLinear(
            phiQ, phiK, v, heads: heads, map: .relu, epsilon: epsilon,
            state: (program.vector(carried.s), nil, program.vector(carried.z)), to: y)
        return true
    }
}
