/// What can be wrong with data from outside: files, configurations and saved positions.
///
/// Every case describes itself in one line that says what was wrong, where, and what was expected.
public enum DatasetError: Error, Equatable, Sendable {
    /// Nothing exists at the path.
    case missingPath(String)
    /// The path exists but cannot be read.
    case unreadable(path: String, reason: String)
    /// The file could not be written; what stood there before is untouched.
    case unwritable(path: String, reason: String)
    /// The folder holds no file that was asked for. `extensions` is empty when any name would have done.
    case noFiles(path: String, extensions: [String])
    /// There is no byte to read.
    case empty(path: String)
    /// The gzip stream is truncated or damaged.
    case corruptGzip(path: String, reason: String)
    /// A text is shorter than one window, or than one batch of windows. Sizes are in bytes.
    case tooShort(what: String, bytes: Int, needed: Int)
    /// There are fewer examples than one batch takes.
    case tooFewExamples(what: String, examples: Int, needed: Int)
    /// A setting is outside its range.
    case invalidSetting(name: String, value: String, expected: String)
    /// A line of a table is not in the format. Lines count from 1.
    case malformedLine(path: String, line: Int, reason: String)
    /// A file that has no lines is not in the format.
    case malformedFile(path: String, reason: String)
    /// A ListOps expression is not well formed. Tokens count from 1, parentheses included.
    case malformedExpression(token: Int, reason: String)
    /// Stated answers differ from the computed ones; the line, from 1, is that of the first.
    case wrongAnswers(path: String, count: Int, line: Int, stated: Int, correct: Int)
    /// The stated answer and those of the two evaluators are not all the same; such an example is never written.
    case unprovenAnswer(expression: String, answers: [Int])
    /// So many draws in a row gave nothing new that the generator gave up.
    case exhausted(what: String, found: Int, wanted: Int)
    /// A saved position does not fit the data.
    case invalidPosition(String)
}

extension DatasetError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .missingPath(let path):
            "\(path): no such file or folder"
        case .unreadable(let path, let reason):
            "\(path): cannot be read: \(reason)"
        case .unwritable(let path, let reason):
            "\(path): cannot be written: \(reason)"
        case .noFiles(let path, let extensions) where extensions.isEmpty:
            "\(path): the folder holds no files"
        case .noFiles(let path, let extensions):
            "\(path): the folder holds no files named *.\(extensions.joined(separator: ", *."))"
        case .empty(let path):
            "\(path): is empty, expected at least one byte of data"
        case .corruptGzip(let path, let reason):
            "\(path): not a whole gzip file: \(reason)"
        case .tooShort(let what, let bytes, let needed):
            "\(what): has \(bytes) bytes, needs at least \(needed)"
        case .tooFewExamples(let what, let examples, let needed):
            "\(what): has \(examples) examples, needs at least \(needed)"
        case .invalidSetting(let name, let value, let expected):
            "\(name): is \(value), expected \(expected)"
        case .malformedLine(let path, let line, let reason):
            "\(path):\(line): \(reason)"
        case .malformedFile(let path, let reason):
            "\(path): \(reason)"
        case .malformedExpression(let token, let reason):
            "ListOps expression, token \(token): \(reason)"
        case .wrongAnswers(let path, let count, let line, let stated, let correct):
            "\(path):\(line): states the answer \(stated), correct is \(correct) (wrong answers in the file: \(count))"
        case .unprovenAnswer(let expression, let answers):
            "ListOps expression \(expression.prefix(60)): its answers disagree: \(answers)"
        case .exhausted(let what, let found, let wanted):
            "\(what): found only \(found) of \(wanted) distinct examples; widen the lengths or ask for fewer"
        case .invalidPosition(let reason):
            "data position: \(reason)"
        }
    }
}

extension DatasetError {
    /// Throws unless `condition` holds: one line for each setting that an initializer checks.
    static func check(
        _ condition: Bool, _ name: String, _ value: some CustomStringConvertible, expected: String
    ) throws(DatasetError) {
        guard condition else {
            throw .invalidSetting(name: name, value: value.description, expected: expected)
        }
    }
}
