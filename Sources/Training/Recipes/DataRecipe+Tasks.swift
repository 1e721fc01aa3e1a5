import Torch

extension DataRecipe {
    /// A folder of images with classes, in the files in which the set is published.
    public struct Images: Codable, Equatable, Sendable {
        public var path: String
        /// So many of the last training images are for validation.
        public var validationExamples: Int

        public init(path: String, validationExamples: Int = 5_000) {
            self.path = path
            self.validationExamples = validationExamples
        }

        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            self.init(path: try values.path(.path))
            validationExamples = try values.value(
                .validationExamples, default: validationExamples, .between(1, and: 100_000_000))
        }
    }

    /// Several series in one table, to be foretold.
    public struct Series: Codable, Equatable, Sendable {
        /// A file of comma-separated numbers.
        public var path: String
        public var channels: Int
        /// Steps that the model sees.
        public var lookback: Int
        /// Steps that it foretells.
        public var horizon: Int
        /// The shares of training, validation and test data, in the order of time. Not of the kind `ett`, which has the
        /// split of its calendar.
        public var splits: [Double]

        /// - Parameter channels: 7 in the Electricity Transformer Temperature sets.
        public init(
            path: String, channels: Int = 7, lookback: Int = 512, horizon: Int = 96,
            splits: [Double] = [0.7, 0.1, 0.2]
        ) {
            self.path = path
            self.channels = channels
            self.lookback = lookback
            self.horizon = horizon
            self.splits = splits
        }

        private static let sizes = Bounds.between(1, and: 1_000_000)

        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            self.init(path: try values.path(.path), channels: try values.value(.channels, Self.sizes))
            lookback = try values.value(.lookback, default: lookback, Self.sizes)
            horizon = try values.value(.horizon, default: horizon, Self.sizes)
            splits = try values.shares(.splits, default: splits)
        }

        /// Of the kind `ett`, whose channels and split are known.
        init(ettFrom decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            self.init(path: try values.path(.path))
            lookback = try values.value(.lookback, default: lookback, Self.sizes)
            horizon = try values.value(.horizon, default: horizon, Self.sizes)
        }

        func encodeETT(to encoder: any Encoder) throws {
            var values = encoder.container(keyedBy: CodingKeys.self)
            try values.encode(path, forKey: .path)
            try values.encode(lookback, forKey: .lookback)
            try values.encode(horizon, forKey: .horizon)
        }
    }
}

extension KeyedDecodingContainer {
    /// Shares of training, validation and test data.
    func shares(_ key: Key, default standard: [Double]) throws -> [Double] {
        let splits = try value(key, default: standard)
        guard splits.count == 3, splits.allSatisfy({ $0 >= 0 && $0 <= 1 }), splits[0] > 0,
            abs(splits.reduce(0, +) - 1) < 1e-6
        else {
            throw DecodingError.dataCorruptedError(
                forKey: key, in: self,
                debugDescription: "expected three shares that add up to 1, as in \(standard), found \(splits)")
        }
        return splits
    }
}
