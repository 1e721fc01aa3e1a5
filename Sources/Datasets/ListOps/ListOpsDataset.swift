import Foundation

extension ClassificationDataset {
    /// ListOps from a folder with `basic_train.tsv`, `basic_val.tsv` and `basic_test.tsv`.
    ///
    /// - Parameters:
    ///   - maximumLength: longer expressions are cut; the benchmark's models read 2000 tokens.
    ///   - verifyingAnswers: whether every answer is computed anew and compared.
    public static func listOps(
        contentsOf folder: URL, maximumLength: Int = 2000, grouping: BatchGrouping = .random,
        verifyingAnswers: Bool = true
    ) throws(DatasetError) -> ClassificationDataset {
        var splits: [DatasetSplit: LabeledSequences] = [:]
        for split in DatasetSplit.allCases {
            let file = folder.appending(component: ListOpsFile.name(of: split))
            splits[split] = LabeledSequences(try ListOpsFile.read(file, verifyingAnswers: verifyingAnswers))
        }
        return try ClassificationDataset(
            name: folder.path(percentEncoded: false), listOps: splits, maximumLength: maximumLength,
            grouping: grouping)
    }

    /// ListOps drawn as `configuration` says, without a file.
    public static func listOps(
        generating configuration: ListOpsConfiguration, grouping: BatchGrouping = .random
    ) throws(DatasetError) -> ClassificationDataset {
        let splits = try ListOpsSplits(generating: configuration)
        return try ClassificationDataset(
            name: "generated ListOps",
            listOps: [
                .train: LabeledSequences(splits.train), .validation: LabeledSequences(splits.validation),
                .test: LabeledSequences(splits.test),
            ], maximumLength: configuration.lengthBelow - 1, grouping: grouping)
    }

    private init(
        name: String, listOps splits: [DatasetSplit: LabeledSequences], maximumLength: Int, grouping: BatchGrouping
    ) throws(DatasetError) {
        try self.init(
            name: name, splits: splits, vocabularySize: ListOpsToken.vocabularySize, classes: ListOpsToken.classes,
            maximumLength: maximumLength, grouping: grouping)
    }
}

extension LabeledSequences {
    /// The ids and answers of ListOps examples.
    public init(_ examples: [ListOpsExample]) {
        self.init()
        for example in examples {
            append(example.expression.ids, label: example.answer)
        }
    }
}
