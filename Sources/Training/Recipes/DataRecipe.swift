import Torch

/// The data of a recipe. Each kind has keys of its own; those of another kind are refused.
public enum DataRecipe: Codable, Equatable, Sendable {
    /// The word that a recipe has for it.
    public enum Kind: String, NamedChoice { case bytes, enwik8, copy, listops, mnist, cifar10, ett, series }

    case bytes(Bytes)
    case enwik8(Enwik8)
    case copy(Copy)
    case listops(ListOps)
    case mnist(Images)
    case cifar10(Images)
    case ett(Series)
    case series(Series)

    public var kind: Kind {
        switch self {
        case .bytes: .bytes
        case .enwik8: .enwik8
        case .copy: .copy
        case .listops: .listops
        case .mnist: .mnist
        case .cifar10: .cifar10
        case .ett: .ett
        case .series: .series
        }
    }

    /// The bytes of a file, or of all files of a folder.
    public struct Bytes: Codable, Equatable, Sendable {
        /// A file or folder.
        public var path: String
        /// The endings of the files that count in a folder, without a point; all files where empty.
        public var extensions: [String]
        /// Bytes of one training sequence.
        public var length: Int
        /// The shares of training, validation and test data, in the order of the text.
        public var splits: [Double]

        public init(
            path: String, extensions: [String] = [], length: Int = 256, splits: [Double] = [0.9, 0.05, 0.05]
        ) {
            self.path = path
            self.extensions = extensions
            self.length = length
            self.splits = splits
        }

        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            self.init(path: try values.path(.path))
            extensions = try values.value(.extensions, default: extensions)
            length = try values.value(.length, default: length, .between(2, and: 1 << 24))
            splits = try values.shares(.splits, default: splits)
        }
    }

    /// The first 100 MB of an English Wikipedia dump, with its standard split (90M/5M/5M).
    public struct Enwik8: Codable, Equatable, Sendable {
        public var path: String
        /// Bytes of one training sequence.
        public var length: Int

        public init(path: String, length: Int = 256) {
            self.path = path
            self.length = length
        }

        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            self.init(path: try values.path(.path))
            length = try values.value(.length, default: length, .between(2, and: 1 << 24))
        }
    }

    /// The copy task of "Transformers are RNNs" (2020, arXiv 2006.16236, section 4.1.1).
    public struct Copy: Codable, Equatable, Sendable {
        /// Tokens of a sequence, both copies together.
        public var length: Int
        /// How many symbols there are besides the separator.
        public var symbols: Int

        public init(length: Int = 128, symbols: Int = 10) {
            self.length = length
            self.symbols = symbols
        }

        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            self.init()
            length = try values.value(.length, default: length, .between(8, and: 1 << 24))
            symbols = try values.value(.symbols, default: symbols, .between(1, and: 1 << 16))
        }
    }

    /// ListOps of Long Range Arena (2020, arXiv 2011.04006): read from the official TSV files, or generated.
    public struct ListOps: Codable, Equatable, Sendable {
        /// A folder of `basic_train.tsv`, `basic_val.tsv`, `basic_test.tsv`; generated where absent.
        public var path: String?
        /// The most tokens of an expression.
        public var length: Int
        /// The fewest tokens of a generated expression.
        public var minimumLength: Int
        /// Nesting of operators in a generated expression.
        public var maximumDepth: Int
        /// Arguments of an operator in a generated expression.
        public var maximumArguments: Int
        public var trainingExamples: Int
        public var validationExamples: Int
        public var testExamples: Int

        public init(path: String? = nil) {
            self.path = path
            length = 2000
            minimumLength = 500
            maximumDepth = 10
            maximumArguments = 10
            trainingExamples = 96_000
            validationExamples = 2_000
            testExamples = 2_000
        }

        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            self.init(path: try values.contains(.path) ? values.path(.path) : nil)
            length = try values.value(.length, default: length, .between(4, and: 1 << 20))
            minimumLength = try values.value(.minimumLength, default: min(minimumLength, length / 4), .atLeast(1))
            maximumDepth = try values.value(.maximumDepth, default: maximumDepth, .between(2, and: 100))
            maximumArguments = try values.value(.maximumArguments, default: maximumArguments, .between(2, and: 100))
            let count = Bounds.between(1, and: 100_000_000)
            trainingExamples = try values.value(.trainingExamples, default: trainingExamples, count)
            validationExamples = try values.value(.validationExamples, default: validationExamples, count)
            testExamples = try values.value(.testExamples, default: testExamples, count)
            guard minimumLength < length else {
                throw DecodingError.dataCorruptedError(
                    forKey: .minimumLength, in: values,
                    debugDescription: "expected less than the length \(length), found \(minimumLength)")
            }
        }
    }

    private enum CodingKeys: String, CodingKey { case kind }

    public init(from decoder: any Decoder) throws {
        let kind = try decoder.container(keyedBy: CodingKeys.self).decode(Kind.self, forKey: .kind)
        switch kind {
        case .bytes: self = .bytes(try Bytes(from: decoder))
        case .enwik8: self = .enwik8(try Enwik8(from: decoder))
        case .copy: self = .copy(try Copy(from: decoder))
        case .listops: self = .listops(try ListOps(from: decoder))
        case .mnist: self = .mnist(try Images(from: decoder))
        case .cifar10: self = .cifar10(try Images(from: decoder))
        case .ett: self = .ett(try Series(ettFrom: decoder))
        case .series: self = .series(try Series(from: decoder))
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: CodingKeys.self)
        try values.encode(kind, forKey: .kind)
        switch self {
        case .bytes(let data): try data.encode(to: encoder)
        case .enwik8(let data): try data.encode(to: encoder)
        case .copy(let data): try data.encode(to: encoder)
        case .listops(let data): try data.encode(to: encoder)
        case .mnist(let data), .cifar10(let data): try data.encode(to: encoder)
        case .ett(let data): try data.encodeETT(to: encoder)
        case .series(let data): try data.encode(to: encoder)
        }
    }
}

extension KeyedDecodingContainer {
    /// A path that is there and could name a file; whether it does is for the reader of the data to say.
    func path(_ key: Key) throws -> String {
        let path = try decode(String.self, forKey: key)
        guard !path.isEmpty, !path.contains("\0") else {
            throw DecodingError.dataCorruptedError(
                forKey: key, in: self, debugDescription: "expected the path of a file or folder")
        }
        return path
    }
}
