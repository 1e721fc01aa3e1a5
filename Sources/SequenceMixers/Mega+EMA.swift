// Mega's multi-dimensional damped exponential moving average (arXiv 2209.10655, eq. 3-5), with what the authors' code
// has and the paper leaves out: 1/√h, ω and silu. For each feature j, with h numbers of α, δ ∈ (0, 1), β and η:
//
//   s_t = α (β x_tj) + (1 - αδ) s_{t-1},  y_tj = ⟨η, s_t⟩ / √h,  out_t = silu(y_t + ω x_t)
//
// which is the causal convolution with K_j[l] = ⟨ηβα, (1 - αδ)^l⟩ / √h. Truncated after T taps, K is 0 from lag T on.
// In two directions a second K runs backwards in time, and both count lag 0.
import Torch
import TorchNN

/// Mega's damped moving average of every feature, causal or in both directions.
///
/// Time O(N d h), or O(N d (h + log N)) through the Fourier transform, which truncated kernels need; memory O(N d)
/// either way, for the kernel `[d, N]` is built from two short tables and never as d × h × N numbers. Streaming keeps
/// d × h numbers, or with a truncated kernel its last T - 1 inputs.
public final class MegaEMA: Module {
    /// How the sums are evaluated; all give the same.
    public enum Form: Sendable, CaseIterable {
        /// Token by token, or tap by tap where the kernel is truncated: the equations themselves.
        case recurrent
        /// As a product of Fourier transforms.
        case fourier
        /// In blocks of some tokens with a state between them. A truncated kernel has no such form.
        case blocked
        /// Token by token with the state in registers, ω and silu on the way; on the CPU, and elsewhere in blocks. A
        /// truncated kernel has no such form.
        case scan
    }

    /// α = sigmoid(this), `[modelDim, h]` as the next three; in two directions `[2 modelDim, h]`, forward first.
    public let alphaLogit: Parameter
    /// δ = sigmoid(this).
    public let deltaLogit: Parameter
    public let beta: Parameter
    public let eta: Parameter
    /// ω `[modelDim]`.
    public let omega: Parameter
    public let isBidirectional: Bool
    /// T; nil for none.
    public let truncation: Int?
    private let modelDim: Int
    private let emaDim: Int

    /// Tokens of a block: wide enough for matrix products, narrow enough that their squares cost little.
    private static let blockLength = 64

    public init(
        modelDim: Int, emaDim: Int, isBidirectional: Bool, truncation: Int? = nil, using generator: RandomGenerator
    ) {
        torchPrecondition(
            modelDim > 0 && emaDim > 0 && truncation ?? 1 > 0, in: "MegaEMA",
            "expected positive sizes, got modelDim \(modelDim), emaDim \(emaDim), truncation \(truncation ?? 1)")
        self.modelDim = modelDim
        self.emaDim = emaDim
        self.isBidirectional = isBidirectional
        self.truncation = truncation
        let shape = [isBidirectional ? 2 * modelDim : modelDim, emaDim]
        func normal(_ shape: [Int], _ deviation: Double) -> Tensor {
            Tensor.randomNormal(shape, using: generator) * deviation
        }
        alphaLogit = Parameter(normal(shape, 0.2))
        deltaLogit = Parameter(normal(shape, 0.2))
        let signs = Tensor((0..<emaDim).map { $0.isMultiple(of: 2) ? Float(1) : -1 })
        beta = Parameter(normal(shape, 0.02) + signs)
        eta = Parameter(normal(shape, 1))
        omega = Parameter(normal([modelDim], 1))
        super.init()
    }

    // MARK: The whole layer

    /// silu(y + ω x), x `[batch, n, modelDim]` to the same shape. Padded positions count as 0 in y.
    ///
    /// - Parameter form: left out, the fastest for the kernel.
    public func callAsFunction(_ x: Tensor, paddingMask: Tensor? = nil, form: Form? = nil) -> Tensor {
        guard !scans(x, form) else {
            let out = movingAverage(x, paddingMask: paddingMask, parameters(gated: true)).out
            return out.shape == x.shape ? out : x  // not so after an error
        }
        return activated(average(cleared(x, paddingMask), form: form), x)
    }

    /// Whether the fused scan computes this.
    private func scans(_ x: Tensor, _ form: Form?) -> Bool {
        let isWhole = truncation.map { $0 >= x.size(1) } ?? true
        return isWhole && x.device == .cpu && (form ?? .scan) == .scan
    }

    private func parameters(gated: Bool) -> MovingAverageParameters {
        MovingAverageParameters(
            alphaLogit: alphaLogit.value, deltaLogit: deltaLogit.value, beta: beta.value, eta: eta.value,
            omega: gated ? omega.value : nil)
    }

    /// y alone, without ω and silu: x `[batch, n, modelDim]` to the same shape.
    public func average(_ x: Tensor, form: Form? = nil) -> Tensor {
        let n = x.size(1)
        let taps = min(truncation ?? n, n)
        let form = form ?? (taps < n ? .fourier : .scan)
        torchPrecondition(
            ![.blocked, .scan].contains(form) || taps == n, in: "MegaEMA",
            "a kernel truncated after \(taps) of \(n) taps has no \(form) form")
        if scans(x, form) { return movingAverage(x, parameters(gated: false)).out }
        let wide = x.to(x.dtype.accumulator)
        if form == .fourier { return convolved(wide, taps).to(x.dtype) }
        func directed(_ x: Tensor, _ direction: Int) -> Tensor {
            let coefficients = coefficients(direction)
            if form == .blocked || form == .scan { return blocked(x, coefficients) }
            return taps < n ? tapByTap(x, coefficients, taps) : recurrent(x, coefficients).y
        }
        var y = directed(wide, 0)
        if isBidirectional { y += directed(wide.flipped(1), 1).flipped(1) }
        return y.to(x.dtype)
    }

    /// s after the last of x `[batch, n, modelDim]`, forwards and without truncation: `[batch, modelDim, h]`.
    public func state(after x: Tensor, paddingMask: Tensor? = nil, form: Form = .blocked) -> Tensor {
        if form == .scan, !isBidirectional, x.device == .cpu {
            return movingAverage(x, paddingMask: paddingMask, parameters(gated: false)).final ?? zeroState(x.size(0))
        }
        let wide = cleared(x, paddingMask).to(x.dtype.accumulator)
        let coefficients = coefficients(0)
        if form == .recurrent { return recurrent(wide, coefficients).state }
        let lengths = Array(repeating: x.size(1), count: x.size(0))
        return folded(wide, lengths, coefficients, from: zeroState(x.size(0)))
    }

    private func cleared(_ x: Tensor, _ paddingMask: Tensor?) -> Tensor {
        paddingMask.map { x.masked(where: (.!$0).unsqueezed(2), with: 0) } ?? x
    }

    private func activated(_ y: Tensor, _ x: Tensor) -> Tensor { (y + omega.value * x).silu() }

    // MARK: The equations

    /// s_t = α (β x_t) + (1 - αδ) s_{t-1},  y_t = ⟨η, s_t⟩ / √h
    private func recurrent(_ x: Tensor, _ c: MegaCoefficients) -> (y: Tensor, state: Tensor) {
        var state = zeroState(x.size(0))
        var outputs: [Tensor] = []
        for t in 0..<x.size(1) {
            let u = c.beta * x.selected(1, t).unsqueezed(2)  // [batch, modelDim, h]
            state = c.alpha * u + c.decay * state
            outputs.append((c.eta * state).sum(2) / Double(emaDim).squareRoot())
        }
        return (stack(outputs, dim: 1), state)
    }

    /// y_t = Σ_{l<T} K[l] x_{t-l}
    private func tapByTap(_ x: Tensor, _ c: MegaCoefficients, _ taps: Int) -> Tensor {
        let n = x.size(1)
        return (0..<taps).reduce(Tensor.zeros(like: x)) { sum, lag in
            let kernel = (c.eta * c.beta * c.alpha * c.decay.power(lag)).sum(1) / Double(emaDim).squareRoot()
            return sum + x.sliced(1, 0..<n - lag).padded(1, before: lag) * kernel
        }
    }

    // MARK: By Fourier transform

    private func convolved(_ x: Tensor, _ taps: Int) -> Tensor {
        let n = x.size(1)
        var size = 1
        while size < n + taps - 1 { size *= 2 }  // so that no lag meets another one's alias
        var kernel = coefficients(0).kernel(taps).padded(1, after: size - taps)
        if isBidirectional {
            // Lag -l stands at size - l.
            let backward = coefficients(1).kernel(taps).flipped(1)
            kernel += backward.padded(1, before: size - taps).rolled(1, by: 1)
        }
        let spectrum = x.transposed(1, 2).rfft(2, count: size) * kernel.rfft(1, count: size)
        return spectrum.irfft(2, count: size).sliced(2, 0..<n).transposed(1, 2)
    }

    // MARK: In blocks

    /// Within a block a triangular matrix of K; between blocks the state s.
    private func blocked(_ x: Tensor, _ c: MegaCoefficients, from initial: Tensor? = nil) -> Tensor {
        let (batch, n) = (x.size(0), x.size(1))
        let (length, blocks) = blocking(n)
        let u = cut(x.padded(1, after: blocks * length - n), length)  // [modelDim, batch · blocks, length]
        // Row s, column t: K[t - s].
        let triangle = c.kernel(length).padded(1, before: length - 1).unfolded(1, size: length).flipped(1)
        var y = matmul(u, triangle)
        if blocks > 1 || initial != nil {
            let before = states(before: added(u, c, batch), length, c, from: initial)
            y += matmul(before.flattened(1, 2), c.output.unsqueezed(2) * c.powers(1..<length + 1))
        }
        return y.reshaped(modelDim, batch, blocks * length).permuted(1, 2, 0).sliced(1, 0..<n)
    }

    private func blocking(_ n: Int) -> (length: Int, blocks: Int) {
        let length = max(1, min(Self.blockLength, n))
        return (length, (n + length - 1) / length)
    }

    /// x `[batch, blocks · length, modelDim]` as `[modelDim, batch · blocks, length]`.
    private func cut(_ x: Tensor, _ length: Int) -> Tensor { x.permuted(2, 0, 1).reshaped(modelDim, -1, length) }

    /// What each block adds to the state at its end: `[modelDim, batch, blocks, h]`.
    private func added(_ u: Tensor, _ c: MegaCoefficients, _ batch: Int) -> Tensor {
        let weights = c.input.unsqueezed(2) * c.powers(0..<u.size(2)).flipped(2)  // [modelDim, h, length]
        return matmul(u, weights.transposed()).reshaped(modelDim, batch, -1, emaDim)
    }

    /// The state at the start of each block: a prefix sum whose reach doubles from step to step.
    private func states(before added: Tensor, _ length: Int, _ c: MegaCoefficients, from initial: Tensor?) -> Tensor {
        let blocks = added.size(2)
        var sums = added
        var reach = 1
        while reach < blocks {
            let decay = (c.logDecay * (reach * length)).exp().unsqueezed(1).unsqueezed(1)
            sums += (sums.sliced(2, 0..<blocks - reach) * decay).padded(2, before: reach)
            reach *= 2
        }
        let before =
            blocks > 1 ? sums.sliced(2, 0..<blocks - 1).padded(2, before: 1) : Tensor.zeros(like: sums)
        guard let initial else { return before }
        let decays = c.decays(after: (0..<blocks).map { $0 * length })  // [modelDim, blocks, h]
        return before + decays.unsqueezed(1) * initial.permuted(1, 0, 2).unsqueezed(2)
    }

    /// s after the first `lengths[b]` tokens of each sequence, of those in x `[batch, n, modelDim]`.
    private func folded(_ x: Tensor, _ lengths: [Int], _ c: MegaCoefficients, from initial: Tensor) -> Tensor {
        let (batch, n) = (x.size(0), x.size(1))
        // All sequences are made to end together, after zeros.
        let isWhole = lengths.allSatisfy { $0 == n }
        let aligned = isWhole ? x : x.rearranged(lengths.map { end in (0..<n).map { end - n + $0 } })
        let (length, blocks) = blocking(n)
        let u = cut(aligned.padded(1, before: blocks * length - n), length)
        let decays = c.decays(after: (0..<blocks).map { (blocks - 1 - $0) * length })
        let sum = (added(u, c, batch) * decays.unsqueezed(1)).sum(2).permuted(1, 0, 2)
        let ages = Tensor(lengths, device: x.device).to(x.dtype).reshaped(batch, 1, 1)
        return (c.logDecay * ages).exp() * initial + sum
    }

    private func zeroState(_ batch: Int) -> Tensor {
        .zeros([batch, modelDim, emaDim], dtype: omega.value.dtype.accumulator, device: omega.value.device)
    }

    func coefficients(_ direction: Int) -> MegaCoefficients {
        let rows = direction * modelDim..<(direction + 1) * modelDim
        func part(_ parameter: Parameter) -> Tensor {
            let value = parameter.value
            return (isBidirectional ? value.sliced(0, rows) : value).to(value.dtype.accumulator)
        }
        return MegaCoefficients(
            alpha: part(alphaLogit).sigmoid(), delta: part(deltaLogit).sigmoid(), beta: part(beta), eta: part(eta))
    }

    // MARK: Streaming

    /// Before the first token: s `[batch, modelDim, h]`, or of a truncated kernel the last inputs
    /// `[batch, T - 1, modelDim]`.
    public func initialState(batch: Int) -> Tensor {
        guard let truncation else { return zeroState(batch) }
        let weight = omega.value
        return .zeros([batch, truncation - 1, modelDim], dtype: weight.dtype.accumulator, device: weight.device)
    }

    /// The next tokens x `[batch, n, modelDim]`, of which the first `lengths[b]` of each sequence count for the state.
    func continued(_ x: Tensor, _ paddingMask: Tensor?, _ lengths: [Int], _ state: inout Tensor) -> Tensor {
        // The scan goes on from a state only where no gradient is wanted, and ends for all sequences at once.
        let isEven = lengths.allSatisfy { $0 == x.size(1) }
        if truncation == nil, x.device == .cpu, isEven, !isGradEnabled {
            let (out, final) = movingAverage(x, paddingMask: paddingMask, parameters(gated: true), initial: state)
            guard let final, out.shape == x.shape else { return x }  // not so after an error
            state = final
            return out
        }
        let inputs = cleared(x, paddingMask).to(state.dtype)
        let y = truncation == nil ? carried(inputs, lengths, &state) : slid(inputs, lengths, &state)
        return activated(y.to(x.dtype), x)
    }

    private func carried(_ x: Tensor, _ lengths: [Int], _ state: inout Tensor) -> Tensor {
        let coefficients = coefficients(0)
        if x.size(1) == 1 && lengths.allSatisfy({ $0 == 1 }) {
            state = coefficients.input * x.selected(1, 0).unsqueezed(2) + coefficients.decay * state
            return (coefficients.output * state).sum(2).unsqueezed(1)
        }
        let y = blocked(x, coefficients, from: state)
        state = folded(x, lengths, coefficients, from: state)
        return y
    }

    private func slid(_ x: Tensor, _ lengths: [Int], _ state: inout Tensor) -> Tensor {
        let (n, held) = (x.size(1), state.size(1))
        let whole = concatenate([state, x], dim: 1)
        let y: Tensor
        if n == 1 {
            let kernel = coefficients(0).kernel(held + 1).flipped(1).transposed()  // [T, modelDim], the last lag first
            y = (whole * kernel).sum(1, keepDim: true)
        } else {
            y = convolved(whole, held + 1).sliced(1, held..<held + n)
        }
        let isEven = lengths.allSatisfy { $0 == lengths[0] }
        state =
            isEven
            ? whole.sliced(1, lengths[0]..<lengths[0] + held).cloned()
            : whole.rearranged(lengths.map { Array($0..<$0 + held) })
        return y
    }
}

/// One direction's numbers, each `[modelDim, h]`, in at least float32.
struct MegaCoefficients {
    let alpha: Tensor
    let delta: Tensor
    let beta: Tensor
    let eta: Tensor
    /// log(1 - αδ), exact for small αδ, and not -∞ where α and δ have been rounded to 1.
    let logDecay: Tensor

    init(alpha: Tensor, delta: Tensor, beta: Tensor, eta: Tensor) {
        (self.alpha, self.delta, self.beta, self.eta) = (alpha, delta, beta, eta)
        let limit = alpha.dtype == .float64 ? 1 - 1e-15 : 1 - 1e-7
        logDecay = (-(alpha * delta)).clamped(min: -limit).log1p()
    }

    var decay: Tensor { 1 - alpha * delta }
    var input: Tensor { alpha * beta }
    var output: Tensor { eta / Double(eta.size(1)).squareRoot() }

    /// (1 - αδ)^l for the l of the range: `[modelDim, h, count]`.
    func powers(_ exponents: Range<Int>) -> Tensor {
        (logDecay.unsqueezed(2) * Tensor.arange(exponents, dtype: alpha.dtype, device: alpha.device)).exp()
    }

    /// (1 - αδ)^l for the listed l: `[modelDim, count, h]`.
    func decays(after exponents: [Int]) -> Tensor {
        let exponents = Tensor(exponents, device: alpha.device).to(alpha.dtype).unsqueezed(1)
        return (logDecay.unsqueezed(1) * exponents).exp()
    }

    /// K[0 ..< taps] `[modelDim, taps]`: low powers of 1 - αδ times powers of its 64th, all at once.
    func kernel(_ taps: Int) -> Tensor {
        let fine = min(taps, 64)
        let coarse = (taps + fine - 1) / fine
        let scaled = decays(after: (0..<coarse).map { $0 * fine }) * (input * output).unsqueezed(1)
        return matmul(scaled, powers(0..<fine)).flattened(1, 2).sliced(1, 0..<taps)
    }
}

extension Tensor {
    /// Row b's position j is position `sources[b][j]` of row b of self `[batch, m, channels]`; a negative one is zero.
    func rearranged(_ sources: [[Int]]) -> Tensor {
        let count = sources.first?.count ?? 0
        if count == 0 { return sliced(1, 0..<0) }
        let positions = Tensor(sources.flatMap { row in row.map { max($0, -1) + 1 } }, shape: [sources.count, count])
        let wide = padded(1, before: 1)
        return wide.gathered(1, positions.to(device).unsqueezed(2).expanded(to: [-1, -1, size(2)]))
    }
}
