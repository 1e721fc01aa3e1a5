import Torch

/// Every mechanism there is. Adding one adds a line here.
public enum MixerCatalogue {
    /// In the order in which they are listed.
    public static let entries: [CatalogueEntry] = [
        SoftmaxOptions.catalogueEntry,
        LinearOptions.catalogueEntry,
        MomentumOptions.catalogueEntry,
        TransNormerOptions.catalogueEntry,
        LinformerOptions.catalogueEntry,
        RevisitingLinformerOptions.catalogueEntry,
        CombinerOptions.catalogueEntry,
        TransformerLSOptions.catalogueEntry,
        ReformerOptions.catalogueEntry,
        SparseOptions.catalogueEntry,
        NGramOptions.catalogueEntry,
        RTransformerOptions.catalogueEntry,
        AFTOptions.catalogueEntry,
        GMLPOptions.catalogueEntry,
        SparseMLPOptions.catalogueEntry,
        MegaOptions.catalogueEntry,
        FourierTransformerOptions.catalogueEntry,
        SamformerOptions.catalogueEntry,
        CosFormerOptions.catalogueEntry,
    ]

    /// - Throws: ``ConfigurationError`` that names the nearest mechanism there is.
    public static func entry(named name: String) throws -> CatalogueEntry {
        if let entry = entries.first(where: { $0.name == name }) { return entry }
        let names = entries.map(\.name)
        let hint = NearestName.find(for: name, among: names).map { "; did you mean '\($0)'?" } ?? ""
        throw ConfigurationError("unknown mixer '\(name)'\(hint) (there are: \(names.joined(separator: ", ")))")
    }
}

/// Where a mechanism was published.
public struct Paper: Sendable, Codable {
    public let title: String
    public let authors: String
    public let year: Int
    /// The number, as in `1706.03762`.
    public let arXiv: String

    public init(_ title: String, authors: String, year: Int, arXiv: String) {
        self.title = title
        self.authors = authors
        self.year = year
        self.arXiv = arXiv
    }
}

/// Whether a mechanism can take a sequence token by token.
public enum StreamingSupport: String, Sendable, Codable {
    /// With a state whose size does not depend on the length.
    case constant
    /// With a state that grows with the length.
    case growing
    case none
}

/// What the catalogue says about a mechanism, and how it is built.
public struct CatalogueEntry: Sendable {
    /// As in a recipe's `mixer.name`.
    public let name: String
    public let title: String
    public let paper: Paper
    /// Whether there is a form in which a position sees only itself and what is before it.
    public let causal: Bool
    /// Whether there is a form in which every position sees every other.
    public let bidirectional: Bool
    /// Whether padding masks are honored.
    public let padding: Bool
    /// Whether a sequence can attend to another one.
    public let crossAttention: Bool
    public let streaming: StreamingSupport
    /// Whether queries and keys may get rotary positions.
    public let rotary: Bool
    /// Cost in the length N, for training.
    public let time: String
    public let memory: String
    /// What its user must know and the columns do not say; nil when there is nothing.
    public let remark: String?
    /// Why there is no causal form, as the end of a sentence; nil where there is one, or nothing to say.
    public let whyNotCausal: String?
    /// The settings it takes in a recipe.
    public let options: any MixerOptions.Type
    /// Builds what a golden file describes, to be compared with its numbers.
    public let golden: @Sendable (GoldenCase) throws -> GoldenSubject

    public init(
        name: String, title: String, paper: Paper, causal: Bool, bidirectional: Bool, padding: Bool,
        crossAttention: Bool,
        streaming: StreamingSupport, rotary: Bool = false, time: String, memory: String, remark: String? = nil,
        whyNotCausal: String? = nil,
        options: any MixerOptions.Type,
        golden: @escaping @Sendable (GoldenCase) throws -> GoldenSubject
    ) {
        self.name = name
        self.title = title
        self.paper = paper
        self.causal = causal
        self.bidirectional = bidirectional
        self.padding = padding
        self.crossAttention = crossAttention
        self.streaming = streaming
        self.rotary = rotary
        self.time = time
        self.memory = memory
        self.remark = remark
        self.whyNotCausal = whyNotCausal
        self.options = options
        self.golden = golden
    }
}
