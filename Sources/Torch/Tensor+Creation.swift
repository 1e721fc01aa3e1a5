import CTorch

extension Tensor {
    /// All zeros.
    public static func zeros(_ shape: [Int], dtype: DType = .float32, device: Device = .cpu) -> Tensor {
        full(shape, 0, dtype: dtype, device: device)
    }

    /// All ones.
    public static func ones(_ shape: [Int], dtype: DType = .float32, device: Device = .cpu) -> Tensor {
        full(shape, 1, dtype: dtype, device: device)
    }

    /// One value everywhere.
    public static func full(
        _ shape: [Int], _ value: some TensorScalar, dtype: DType = .float32, device: Device = .cpu
    ) -> Tensor {
        call("full") { error in
            shape.withDims { ctorch_full($0, $1, value.scalarValue.forC, options(dtype, device), error) }
        }
    }

    /// Memory whose content is whatever was there.
    public static func uninitialized(_ shape: [Int], dtype: DType = .float32, device: Device = .cpu) -> Tensor {
        call("empty") { error in shape.withDims { ctorch_empty($0, $1, options(dtype, device), error) } }
    }

    /// Zeros of the shape, type and device of another.
    public static func zeros(like other: Tensor) -> Tensor { full(like: other, 0) }
    /// Ones of the shape, type and device of another.
    public static func ones(like other: Tensor) -> Tensor { full(like: other, 1) }

    /// One value, in the shape, type and device of another.
    public static func full(like other: Tensor, _ value: some TensorScalar) -> Tensor {
        call("full_like", other) { ctorch_full_like($0, value.scalarValue.forC, $1) }
    }

    /// The whole numbers of the range.
    public static func arange(_ range: Range<Int>, dtype: DType = .int64, device: Device = .cpu) -> Tensor {
        arange(from: range.lowerBound, to: range.upperBound, step: 1, dtype: dtype, device: device)
    }

    /// `start`, `start + step`, … below `end`.
    public static func arange<Scalar: TensorScalar>(
        from start: Scalar, to end: Scalar, step: Scalar, dtype: DType = Scalar.dtype, device: Device = .cpu
    ) -> Tensor {
        call("arange") { error in
            ctorch_arange(
                start.scalarValue.forC, end.scalarValue.forC, step.scalarValue.forC, options(dtype, device), error)
        }
    }

    /// The identity matrix.
    public static func eye(_ size: Int, dtype: DType = .float32, device: Device = .cpu) -> Tensor {
        call("eye") { ctorch_eye(Int64(size), options(dtype, device), $0) }
    }
}
