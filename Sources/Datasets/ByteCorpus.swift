import Foundation

/// How a text is cut by position into training, validation and test bytes.
public struct SplitFractions: Codable, Hashable, Sendable {
    public var train: Double
    public var validation: Double
    public var test: Double

    /// 90 %, 5 % and 5 %. For enwik8, a file of 10⁸ bytes, these are its standard 90M, 5M and 5M.
    public static let standard = SplitFractions(train: 0.9, validation: 0.05, test: 0.05)

    public init(train: Double, validation: Double, test: Double) {
        self.train = train
        self.validation = validation
        self.test = test
    }

    /// The ranges of the three splits in a text of `count` bytes: together they cover it, without overlap.
    func ranges(of count: Int) throws(DatasetError) -> [DatasetSplit: Range<Int>] {
        let parts = [train, validation, test]
        try DatasetError.check(
            parts.allSatisfy { $0 >= 0 } && abs(parts.reduce(0, +) - 1) < 1e-6, "split fractions", parts,
            expected: "three numbers of at least 0 whose sum is 1")
        let trainEnd = min(count, Int((Double(count) * train).rounded()))
        let validationEnd = min(count, max(trainEnd, Int((Double(count) * (train + validation)).rounded())))
        return [.train: 0..<trainEnd, .validation: trainEnd..<validationEnd, .test: validationEnd..<count]
    }
}

/// The bytes of a text with its three splits, held in memory once.
public struct ByteCorpus: Sendable {
    /// What the text is called in messages: its path.
    public let name: String
    /// True when the splits are files of their own, published as such, and not cut by position.
    public let hasOfficialSplits: Bool
    private let splits: [DatasetSplit: Data]

    /// Reads a file or folder; see ``ByteFiles/read(_:extensions:)``.
    ///
    /// A folder with `wiki.train.tokens`, `wiki.valid.tokens` and `wiki.test.tokens`, plain or as `.gz`, keeps these
    /// official splits of WikiText. Everything else is cut by position. Peak memory: the text and its packed file.
    public init(
        contentsOf url: URL, extensions: [String] = [], fractions: SplitFractions = .standard
    ) throws(DatasetError) {
        let name = url.path(percentEncoded: false)
        if let files = Self.wikiTextFiles(in: url) {
            var splits: [DatasetSplit: Data] = [:]
            for (split, file) in files {
                splits[split] = try ByteFiles.read(file)
            }
            self.init(name: name, hasOfficialSplits: true, splits: splits)
        } else {
            try self.init(ByteFiles.read(url, extensions: extensions), name: name, fractions: fractions)
        }
    }

    /// Cuts `bytes` by position.
    public init(_ bytes: Data, name: String, fractions: SplitFractions = .standard) throws(DatasetError) {
        let splits = try fractions.ranges(of: bytes.count).mapValues { range in
            bytes[bytes.startIndex + range.lowerBound..<bytes.startIndex + range.upperBound]
        }
        self.init(name: name, hasOfficialSplits: false, splits: splits)
    }

    private init(name: String, hasOfficialSplits: Bool, splits: [DatasetSplit: Data]) {
        self.name = name
        self.hasOfficialSplits = hasOfficialSplits
        self.splits = splits
    }

    /// The bytes of one split; shares storage with the corpus.
    public subscript(split: DatasetSplit) -> Data {
        splits[split] ?? Data()
    }

    private static func wikiTextFiles(in folder: URL) -> [DatasetSplit: URL]? {
        let names: [DatasetSplit: String] = [.train: "train", .validation: "valid", .test: "test"]
        let files = names.compactMapValues { name in
            ["wiki.\(name).tokens", "wiki.\(name).tokens.gz"].map { folder.appending(component: $0) }
                .first { FileManager.default.fileExists(atPath: $0.path(percentEncoded: false)) }
        }
        return files.count == names.count ? files : nil
    }
}
