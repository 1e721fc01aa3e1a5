/// Pieces of several series at once, past and future, as plain values.
public struct SeriesBatch: TrainingBatch, Hashable {
    /// What the model sees: `[batch, channels, lookback]`, row-major.
    public let history: [Float]
    /// What it should say: `[batch, channels, horizon]`.
    public let future: [Float]
    /// Number of windows.
    public let batch: Int
    public let channels: Int
    public let lookback: Int
    public let horizon: Int

    /// - Precondition: the sizes of the arrays agree with the others.
    public init(history: [Float], future: [Float], batch: Int, channels: Int, lookback: Int, horizon: Int) {
        precondition(
            history.count == batch * channels * lookback && future.count == batch * channels * horizon,
            "SeriesBatch: the values do not fill [\(batch), \(channels), \(lookback)] and [.., \(horizon)]")
        self.history = history
        self.future = future
        self.batch = batch
        self.channels = channels
        self.lookback = lookback
        self.horizon = horizon
    }

    /// Values that are to be foretold: the weight of this batch in a mean over batches.
    public var countedTargets: Int { future.count }
    /// A model's token is the history of one channel.
    public var realTokens: Int { batch * channels }
}
