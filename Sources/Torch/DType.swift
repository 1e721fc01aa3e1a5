/// The type of a tensor's elements. Raw values are LibTorch's own.
public enum DType: Int32, Sendable, CaseIterable, Codable {
    case uint8 = 0
    case int8 = 1
    case int16 = 2
    case int32 = 3
    case int64 = 4
    case float16 = 5
    case float32 = 6
    case float64 = 7
    case complex64 = 9
    case complex128 = 10
    case bool = 11
    case bfloat16 = 15

    /// Bytes of one element.
    public var size: Int {
        switch self {
        case .uint8, .int8, .bool: 1
        case .int16, .float16, .bfloat16: 2
        case .int32, .float32: 4
        case .int64, .float64, .complex64: 8
        case .complex128: 16
        }
    }

    /// Whether gradients can flow through elements of this type.
    public var isFloatingPoint: Bool {
        switch self {
        case .float16, .bfloat16, .float32, .float64: true
        default: false
        }
    }
}

extension DType: CustomStringConvertible {
    public var description: String {
        switch self {
        case .uint8: "uint8"
        case .int8: "int8"
        case .int16: "int16"
        case .int32: "int32"
        case .int64: "int64"
        case .float16: "float16"
        case .float32: "float32"
        case .float64: "float64"
        case .complex64: "complex64"
        case .complex128: "complex128"
        case .bool: "bool"
        case .bfloat16: "bfloat16"
        }
    }
}

/// A number that can stand beside a tensor in an expression, or be an element of one.
///
/// An operation with a number keeps the tensor's type: a `float32` tensor plus `1` or `0.5` is `float32`. Only where that type
/// cannot hold the result does it widen: `int64` plus `0.5` is `float32`, `bool` plus `1` is `int64`.
public protocol TensorScalar: Sendable {
    static var dtype: DType { get }
    var scalarValue: ScalarValue { get }
}

/// A number as it is handed to LibTorch, whole numbers kept whole.
public enum ScalarValue: Sendable, Equatable {
    case real(Double)
    case integer(Int64)
    case boolean(Bool)
}

extension Double: TensorScalar {
    public static var dtype: DType { .float64 }
    public var scalarValue: ScalarValue { .real(self) }
}

extension Float: TensorScalar {
    public static var dtype: DType { .float32 }
    public var scalarValue: ScalarValue { .real(Double(self)) }
}

extension Int: TensorScalar {
    public static var dtype: DType { .int64 }
    public var scalarValue: ScalarValue { .integer(Int64(self)) }
}

extension Int64: TensorScalar {
    public static var dtype: DType { .int64 }
    public var scalarValue: ScalarValue { .integer(self) }
}

extension Int32: TensorScalar {
    public static var dtype: DType { .int32 }
    public var scalarValue: ScalarValue { .integer(Int64(self)) }
}

extension UInt8: TensorScalar {
    public static var dtype: DType { .uint8 }
    public var scalarValue: ScalarValue { .integer(Int64(self)) }
}

extension Bool: TensorScalar {
    public static var dtype: DType { .bool }
    public var scalarValue: ScalarValue { .boolean(self) }
}
