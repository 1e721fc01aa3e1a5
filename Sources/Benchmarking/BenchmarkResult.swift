/// Times and memory of one piece of work, as `subq bench --json` prints them; what is nil is left out there.
public struct BenchmarkResult: Codable, Sendable {
    public var mechanism: String
    public var causal: Bool
    public var batch: Int
    public var heads: Int
    public var length: Int
    public var headDim: Int
    /// `forward`, `forward-backward`, `train-step` or `generate`.
    public var pass: String
    public var threads: Int
    public var medianMilliseconds: Double
    public var minimumMilliseconds: Double
    /// The most memory resident while it was measured, in units of 10⁶ bytes.
    public var peakResidentMegabytes: Double
    /// Tokens a second, of language models.
    public var tokensPerSecond: Double?
    /// Time to take up the context, of generation.
    public var prefillMilliseconds: Double?
    /// What was resident before, once LibTorch had what it needs whatever the length; in units of 10⁶ bytes.
    public var baseResidentMegabytes: Double?
    /// `fast` or `reference` where both were measured.
    public var form: String?
    /// Of the reference form: its time in units of the fast form's.
    public var timesFast: Double?
    /// The operations of the mechanism's products, in units of 10⁹; see ``OperationCount``.
    public var gigaOperations: Double?
    /// What a product of large matrices reached in the same run, in 10⁹ operations a second.
    public var productRate: Double?
    /// The rate of the mechanism's products in units of that.
    public var productShare: Double?
    /// Exponents of the fits over all lengths, with the last of them.
    public var timeExponent: Double?
    public var memoryExponent: Double?

    /// What was needed beyond the base, in units of 10⁶ bytes.
    public var extraMegabytes: Double? { baseResidentMegabytes.map { peakResidentMegabytes - $0 } }

    private enum CodingKeys: String, CodingKey {
        case mechanism, causal, batch, heads, length, pass, threads
        case headDim = "head_dim"
        case medianMilliseconds = "median_ms"
        case minimumMilliseconds = "min_ms"
        case peakResidentMegabytes = "peak_rss_mb"
        case tokensPerSecond = "tokens_per_s"
        case prefillMilliseconds = "prefill_ms"
        case baseResidentMegabytes = "base_rss_mb"
        case form
        case timesFast = "times_fast"
        case gigaOperations = "gflop"
        case productRate = "sgemm_gflop_per_s"
        case productShare = "sgemm_share"
        case timeExponent = "time_exponent"
        case memoryExponent = "memory_exponent"
    }
}
