// How Swift calls the shim: handles stay alive across the call, and an error becomes a trap or is thrown.
import CTorch

typealias ErrorPointer = UnsafeMutablePointer<ctorch_error>?

/// An operation without operands.
func call(_ operation: StaticString, _ body: (ErrorPointer) -> ctorch_tensor?) -> Tensor {
    var error = ctorch_error()
    let result = body(&error)
    return finished(operation, result, &error, { [] })
}

func call(_ operation: StaticString, _ a: Tensor, _ body: (ctorch_tensor?, ErrorPointer) -> ctorch_tensor?) -> Tensor {
    var error = ctorch_error()
    let result = withExtendedLifetime(a.handle) { body(a.handle.pointer, &error) }
    return finished(operation, result, &error, { [a] })
}

func call(
    _ operation: StaticString, _ a: Tensor, _ b: Tensor,
    _ body: (ctorch_tensor?, ctorch_tensor?, ErrorPointer) -> ctorch_tensor?
) -> Tensor {
    var error = ctorch_error()
    let result = withExtendedLifetime((a.handle, b.handle)) { body(a.handle.pointer, b.handle.pointer, &error) }
    return finished(operation, result, &error, { [a, b] })
}

/// An operation with any number of operands, some of which may be absent.
func call(
    _ operation: StaticString, _ operands: [Tensor?], _ body: ([ctorch_tensor?], ErrorPointer) -> ctorch_tensor?
) -> Tensor {
    var error = ctorch_error()
    let result = withExtendedLifetime(operands) { body(operands.map { $0?.handle.pointer }, &error) }
    return finished(operation, result, &error, { operands.compactMap { $0 } })
}

/// A call that returns no tensor.
func run(_ operation: StaticString, _ operands: [Tensor], _ body: ([ctorch_tensor?], ErrorPointer) -> Void) {
    var error = ctorch_error()
    withExtendedLifetime(operands) { body(operands.map { $0.handle.pointer }, &error) }
    if error.message != nil { fail(error.taken(in: operation, operands)) }
}

/// A call that returns a number.
func value<Result>(_ operation: StaticString, _ a: Tensor, _ body: (ctorch_tensor?, ErrorPointer) -> Result) -> Result {
    var error = ctorch_error()
    let result = withExtendedLifetime(a.handle) { body(a.handle.pointer, &error) }
    if error.message != nil { fail(error.taken(in: operation, [a])) }
    return result
}

private func finished(
    _ operation: StaticString, _ result: ctorch_tensor?, _ error: inout ctorch_error, _ operands: () -> [Tensor]
) -> Tensor {
    if let result { return Tensor(owning: result) }
    fail(error.taken(in: operation, operands()))
    return .standIn
}

extension ScalarValue {
    var forC: ctorch_scalar {
        switch self {
        case .real(let value): ctorch_scalar(kind: 0, real: value, integer: 0)
        case .integer(let value): ctorch_scalar(kind: 1, real: 0, integer: value)
        case .boolean(let value): ctorch_scalar(kind: 2, real: 0, integer: value ? 1 : 0)
        }
    }
}

func options(_ dtype: DType, _ device: Device) -> ctorch_options {
    let code = device.code
    return ctorch_options(dtype: dtype.rawValue, device_type: code.type, device_index: code.index)
}

extension Array where Element == Int {
    /// Sizes and dimensions as C reads them.
    func withDims<Result>(_ body: (UnsafePointer<Int64>?, Int) -> Result) -> Result {
        withUnsafeBufferPointer { buffer in
            buffer.withMemoryRebound(to: Int64.self) { body($0.baseAddress, $0.count) }
        }
    }
}
