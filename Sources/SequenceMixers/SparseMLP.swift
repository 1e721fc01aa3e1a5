// Sparse-MLP. Lou, Xue, Zheng, You 2021, "Cross-token Modeling with Conditional Computation" (first "Sparse-MLP: A
// Fully-MLP Architecture with Conditional Computation"), arXiv 2109.02008. A sparse block, X [S, C] to X:
//
//   H = LN₁(X);  H ← re_in(H) in R^(C₁ × S₁);  Y = MoE_S(rows of H);  X ← X + re_out(Y)
//   X ← X + MoE_C(rows of LN₂(X))
//
// re_in: channels C → C₁, transposed, tokens S → S₁; re_out: tokens S₁ → S, transposed, channels C₁ → C, all with bias.
// Without them the rows are those of Hᵀ. A dense block, that of MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601),
// has MLP(t) = W₂ gelu(W₁ t) in place of both MoE and no re_in, re_out. The mixture is in SparseMLP+Experts.swift.
import Torch
import TorchNN

/// The two maps of one side of the token stage, `[…, channels]` and `[…, tokens]`.
public final class Representation: Module {
    public let channel: Linear
    public let token: Linear

    init(from grid: SparseMLP.Grid, to other: SparseMLP.Grid, using generator: RandomGenerator) {
        channel = Linear(grid.modelDim, other.modelDim, using: generator)
        token = Linear(grid.length, other.length, using: generator)
        super.init()
    }
}

/// A whole block whose items, channels of a sequence in the first stage and tokens in the second, are served by a few
/// of many experts each.
///
/// Time O(k_S C₁ S₁ h_S + k_C S C h_C) a sequence, and O(S² C) for the re-represent maps; memory O(S C). It takes
/// sequences of one length. A padded token counts for nothing: it enters the first stage as zeros, and asks no expert
/// in the second.
public final class SparseMLP: Module, ReferenceEvaluating, AuxiliaryLossProviding {
    public let tokenNorm: LayerNorm
    public let inward: Representation?
    public let tokenExperts: MixtureOfExperts
    public let outward: Representation?
    public let channelNorm: LayerNorm
    public let channelExperts: MixtureOfExperts
    /// S.
    public let length: Int
    /// λ of the balance losses.
    public let balance: Double
    private var last: (token: ExpertRouting, channel: ExpertRouting)?

    /// Asks every expert about every item instead.
    public var usesReference = false

    /// Tokens and channels of a sequence.
    public struct Grid: Sendable {
        public var length: Int
        public var modelDim: Int

        public init(length: Int, modelDim: Int) {
            self.length = length
            self.modelDim = modelDim
        }
    }

    /// - Parameters:
    ///   - grid: S and C.
    ///   - represented: S₁ and C₁; nil for a block without re-represent layers.
    ///   - tokenExperts: for items of length S₁, or S.
    ///   - channelExperts: for items of length C.
    public init(
        _ grid: Grid, represented: Grid?, tokenExperts: MixtureOfExperts, channelExperts: MixtureOfExperts,
        balance: Double = 0.01, epsilon: Double = 1e-6, using generator: RandomGenerator
    ) {
        let (length, dim) = (grid.length, grid.modelDim)
        tokenNorm = LayerNorm(dim, epsilon: epsilon)
        channelNorm = LayerNorm(dim, epsilon: epsilon)
        inward = represented.map { Representation(from: grid, to: $0, using: generator) }
        outward = represented.map { Representation(from: $0, to: grid, using: generator) }
        self.tokenExperts = tokenExperts
        self.channelExperts = channelExperts
        self.length = length
        self.balance = balance
        super.init()
    }

    public var isCausal: Bool { false }
    public var isWholeBlock: Bool { true }

    /// λ (L_imp + L_load) / 2, of both stages together.
    public var auxiliaryLoss: Tensor? {
        guard isTraining, balance > 0 else { return nil }
        return last.map { balanceLoss($0.token) + balanceLoss($0.channel) }
    }

    func balanceLoss(_ routing: ExpertRouting) -> Tensor {
        (routing.importanceLoss + routing.loadLoss) * (balance / 2)
    }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        last = nil
        guard isGrid(x, paddingMask, length: length, modelDim: tokenNorm.dim) else { return x }
        let (y, token, channel) = evaluated(x, paddingMask)
        if isTraining { last = (token, channel) }
        return y
    }

    /// The block's output, and who served whom.
    ///
    /// - Parameters:
    ///   - tokenNoise: ε of the token stage `[batch · C₁, experts]`; left out, drawn in training.
    ///   - channelNoise: ε of the channel stage `[batch · S, experts]`; left out, drawn in training.
    func evaluated(_ x: Tensor, _ mask: Tensor? = nil, tokenNoise: Tensor? = nil, channelNoise: Tensor? = nil) -> (
        out: Tensor, token: ExpertRouting, channel: ExpertRouting
    ) {
        let batch = x.size(0)
        var h = tokenNorm(x)
        if let mask { h = h.masked(where: (.!mask).unsqueezed(2), with: 0) }
        let columns = (inward.map { $0.channel(h) } ?? h).transposed()  // [batch, C₁, S]
        let items = (inward.map { $0.token(columns) } ?? columns).flattened(0, 1)  // [batch · C₁, S₁]
        let token = tokenExperts.route(items, noise: tokenNoise)
        let served = serve(tokenExperts, items, token).reshaped(batch, columns.size(1), -1)
        let rows = (outward.map { $0.token(served) } ?? served).transposed()  // [batch, S, C₁]
        let mixed = x + (outward.map { $0.channel(rows) } ?? rows)

        let tokens = channelNorm(mixed).flattened(0, 1)  // [batch · S, C]
        let channel = channelExperts.route(tokens, mask: mask?.flattened(), noise: channelNoise)
        let out = mixed + serve(channelExperts, tokens, channel).reshaped(to: x.shape)
        return (out, token, channel)
    }

    private func serve(_ experts: MixtureOfExperts, _ items: Tensor, _ routing: ExpertRouting) -> Tensor {
        usesReference ? experts.reference(items, routing) : experts(items, routing)
    }
}

/// A block of MLP-Mixer: one MLP over the tokens of each channel, and one over the channels of each token.
///
/// Time O(S C (h_S + h_C)) a sequence, memory O(S C). It takes sequences of one length; a padded token is zeros to the
/// others.
public final class DenseMLP: Module, SequenceMixer {
    public let tokenNorm: LayerNorm
    public let tokenUp: Linear
    public let tokenDown: Linear
    public let channelNorm: LayerNorm
    public let channelUp: Linear
    public let channelDown: Linear
    public let length: Int
    private let activation: Activation

    public init(
        length: Int, modelDim: Int, tokenHiddenDim: Int, channelHiddenDim: Int, activation: Activation = .gelu,
        epsilon: Double = 1e-6, using generator: RandomGenerator
    ) {
        tokenNorm = LayerNorm(modelDim, epsilon: epsilon)
        tokenUp = Linear(length, tokenHiddenDim, using: generator)
        tokenDown = Linear(tokenHiddenDim, length, using: generator)
        channelNorm = LayerNorm(modelDim, epsilon: epsilon)
        channelUp = Linear(modelDim, channelHiddenDim, using: generator)
        channelDown = Linear(channelHiddenDim, modelDim, using: generator)
        self.length = length
        self.activation = activation
        super.init()
    }

    public var isCausal: Bool { false }
    public var isWholeBlock: Bool { true }

    public func callAsFunction(_ x: Tensor, paddingMask: Tensor?) -> Tensor {
        guard isGrid(x, paddingMask, length: length, modelDim: tokenNorm.dim) else { return x }
        var h = tokenNorm(x)
        if let paddingMask { h = h.masked(where: (.!paddingMask).unsqueezed(2), with: 0) }
        let mixed = x + tokenDown(activation(tokenUp(h.transposed()))).transposed()
        return mixed + channelDown(activation(channelUp(channelNorm(mixed))))
    }
}

extension SequenceMixer {
    /// Traps, naming the layer, unless x is `[batch, length, modelDim]` of exactly that length; false where the caller
    /// is to go on without it.
    fileprivate func isGrid(_ x: Tensor, _ paddingMask: Tensor?, length: Int, modelDim: Int) -> Bool {
        checkInput(x, paddingMask, modelDim: modelDim)
        let shape = x.shape
        guard shape.count == 3, shape[2] == modelDim, !shape.contains(0) else { return false }
        torchPrecondition(
            shape[1] == length, in: "\(type(of: self))",
            "expected x [batch, \(length), \(modelDim)], since its weights are for positions; got \(shape)")
        let isMask = paddingMask.map { $0.shape == [shape[0], shape[1]] && $0.dtype == .bool } ?? true
        return shape[1] == length && isMask
    }
}
