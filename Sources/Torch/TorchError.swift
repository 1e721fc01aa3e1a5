import CTorch
import Foundation

/// An operation that could not be carried out: which one, on what, and why.
public struct TorchError: Error, Equatable, Sendable, CustomStringConvertible {
    /// What sort of failure it is.
    public enum Kind: Int32, Sendable {
        case invalidArgument = 1
        case indexOutOfRange = 2
        case outOfMemory = 3
        case notSupported = 4
        case `internal` = 5
    }

    public let kind: Kind
    /// The operation's name, as in LibTorch: `matmul`, `reshape`, ….
    public let operation: String
    /// Why, in LibTorch's or the layer's words, with the shapes.
    public let message: String

    public init(_ kind: Kind, in operation: String, _ message: String) {
        self.kind = kind
        self.operation = operation
        self.message = message
    }

    public var description: String { "\(operation): \(message)" }
}

/// Runs `body` so that a misuse of tensors inside it (shapes that do not fit, an index out of range, memory that is not
/// there) is thrown, where it would otherwise end the program.
///
/// After the first error `body` runs on with empty stand-ins for the tensors that could not be computed; its result is
/// dropped and the first error is thrown.
///
/// ```swift
/// let product = try withTorchErrors { matmul(a, b) }
/// ```
public func withTorchErrors<Result>(_ body: () throws -> Result) throws -> Result {
    let scope = ErrorScope()
    let result = ErrorScope.$current.withValue(scope) { Swift.Result { try body() } }
    if let error = scope.first { throw error }
    return try result.get()
}

/// Reports misuse of tensors: traps with the message, or is thrown by the enclosing ``withTorchErrors(_:)``.
///
/// Layers check their inputs with it, so that a caller sees the layer's name and shapes rather than LibTorch's.
/// Code after it must still run without harm when `condition` is false inside such a scope.
public func torchPrecondition(
    _ condition: Bool, in operation: String, _ message: @autoclosure () -> String
) {
    if !condition { fail(TorchError(.invalidArgument, in: operation, message())) }
}

/// Where the first error inside ``withTorchErrors(_:)`` is kept.
final class ErrorScope: @unchecked Sendable {
    @TaskLocal static var current: ErrorScope?

    private let lock = NSLock()
    private var stored: TorchError?

    var first: TorchError? { lock.withLock { stored } }

    func record(_ error: TorchError) {
        lock.withLock { if stored == nil { stored = error } }
    }
}

/// Records the error in the enclosing scope; without one, misuse ends the program as an index out of range does.
func fail(_ error: TorchError) {
    guard let scope = ErrorScope.current else { fatalError("Torch: \(error)") }
    scope.record(error)
}

extension ctorch_error {
    /// Takes over the text that the shim allocated.
    mutating func taken(in operation: StaticString, _ operands: [Tensor]) -> TorchError {
        defer {
            free(message)
            message = nil
        }
        let text =
            message.map { String(cString: $0).split(separator: "\n").first.map(String.init) ?? "" } ?? "unknown failure"
        let shapes = operands.map { "\($0.shape)" }.joined(separator: ", ")
        return TorchError(
            TorchError.Kind(rawValue: kind) ?? .internal, in: "\(operation)",
            operands.isEmpty ? text : "\(text) [operands: \(shapes)]")
    }
}
