/// A run directory or what it holds is not as it must be.
public enum RunError: Error, CustomStringConvertible, Equatable, Sendable {
    /// Training was to begin where a run already is.
    case exists(path: String)
    /// Training was to begin where something else is.
    case cannotBegin(path: String, reason: String)
    /// The folder holds something else, or is no folder.
    case notARun(path: String, reason: String)
    /// Another process is training here; its id where known.
    case locked(path: String, process: Int?)
    /// A file cannot be read as what it should be.
    case damaged(path: String, reason: String)
    /// There are checkpoints but none is whole.
    case noWholeCheckpoint(path: String, reasons: [String])

    public var description: String {
        switch self {
        case .exists(let path):
            "'\(path)' already holds a run; continue it with --resume, or choose another folder with --out"
        case .cannotBegin(let path, let reason):
            "cannot begin a run in '\(path)': \(reason); choose another folder with --out"
        case .notARun(let path, let reason): "'\(path)' is not a run directory: \(reason)"
        case .locked(let path, let process):
            "another process\(process.map { " (\($0))" } ?? "") is training in '\(path)'"
        case .damaged(let path, let reason): "'\(path)' is damaged: \(reason)"
        case .noWholeCheckpoint(let path, let reasons):
            "no whole checkpoint in '\(path)': \(reasons.joined(separator: "; "))"
        }
    }
}
