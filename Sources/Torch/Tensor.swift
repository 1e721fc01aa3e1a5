import CTorch
import Foundation

/// An array of numbers with a shape, on a device, that can carry a gradient.
///
/// A tensor is a value: operations return new tensors and leave their operands as they were. Only the methods whose names
/// end in `InPlace`, meant for optimizers and for loading weights, change what other copies of the tensor see. Misuse
/// (shapes that do not fit) traps with a message, or throws inside ``withTorchErrors(_:)``.
///
/// A tensor is not `Sendable`: LibTorch's graph behind it is not safe to share between threads.
public struct Tensor {
    let handle: TensorHandle

    init(owning pointer: ctorch_tensor) { handle = TensorHandle(pointer) }

    /// What an operation that failed inside ``withTorchErrors(_:)`` returns: an empty tensor that nothing will be read from.
    static var standIn: Tensor {
        var error = ctorch_error()
        let shape: [Int64] = [0]
        guard let pointer = ctorch_empty(shape, 1, options(.float32, .cpu), &error) else {
            fatalError("Torch: out of memory")
        }
        return Tensor(owning: pointer)
    }
}

/// Owns LibTorch's reference and gives it back.
final class TensorHandle {
    let pointer: ctorch_tensor

    init(_ pointer: ctorch_tensor) { self.pointer = pointer }

    deinit { ctorch_tensor_free(pointer) }
}

// MARK: - What it is

extension Tensor {
    /// The size of each dimension; empty for a single number.
    public var shape: [Int] {
        withExtendedLifetime(handle) {
            let rank = Int(ctorch_rank(handle.pointer))
            return [Int](unsafeUninitializedCapacity: rank) { buffer, count in
                buffer.withMemoryRebound(to: Int64.self) { ctorch_shape(handle.pointer, $0.baseAddress) }
                count = rank
            }
        }
    }

    /// The number of dimensions.
    public var rank: Int { withExtendedLifetime(handle) { Int(ctorch_rank(handle.pointer)) } }

    /// The number of elements.
    public var count: Int { withExtendedLifetime(handle) { Int(ctorch_count(handle.pointer)) } }

    /// The type of the elements.
    public var dtype: DType {
        withExtendedLifetime(handle) {
            guard let dtype = DType(rawValue: ctorch_dtype(handle.pointer)) else {
                fatalError("Torch: element type \(ctorch_dtype(handle.pointer)) is not one of DType")
            }
            return dtype
        }
    }

    /// Where the elements lie.
    public var device: Device {
        withExtendedLifetime(handle) {
            Device(type: ctorch_device_type(handle.pointer), index: ctorch_device_index(handle.pointer))
        }
    }

    /// The size of one dimension; negative dimensions count from the end.
    public func size(_ dim: Int) -> Int {
        let shape = shape
        let index = dim < 0 ? dim + shape.count : dim
        guard shape.indices.contains(index) else {
            fail(TorchError(.indexOutOfRange, in: "size", "dimension \(dim) of a tensor of shape \(shape)"))
            return 0
        }
        return shape[index]
    }

    /// Whether the elements lie in memory row by row without gaps.
    public var isContiguous: Bool { withExtendedLifetime(handle) { ctorch_is_contiguous(handle.pointer) } }

    /// Whether both look at the same memory.
    public func sharesStorage(with other: Tensor) -> Bool {
        withExtendedLifetime((handle, other.handle)) { ctorch_shares_storage(handle.pointer, other.handle.pointer) }
    }
}

// MARK: - From and to Swift's numbers

extension Tensor {
    /// A single number.
    public init(_ scalar: some TensorScalar, dtype: DType? = nil, device: Device = .cpu) {
        self = .full([], scalar, dtype: dtype ?? type(of: scalar).dtype, device: device)
    }

    /// The elements in row-major order; without a shape, a vector.
    public init<Scalar: TensorScalar>(_ scalars: [Scalar], shape: [Int]? = nil, device: Device = .cpu) {
        let shape = shape ?? [scalars.count]
        self = call("tensor") { error in
            scalars.withUnsafeBytes { bytes in
                shape.withDims {
                    ctorch_from_memory(bytes.baseAddress, bytes.count, $0, $1, options(Scalar.dtype, device), error)
                }
            }
        }
    }

    /// Copies raw row-major elements of the given type.
    public init(bytes: UnsafeRawBufferPointer, shape: [Int], dtype: DType, device: Device = .cpu) {
        self = call("tensor") { error in
            shape.withDims { ctorch_from_memory(bytes.baseAddress, bytes.count, $0, $1, options(dtype, device), error) }
        }
    }

    /// The only element, as a number. Waits for the device.
    public func item() -> Double { value("item", self, ctorch_item_double) }

    /// The only element of an integer tensor.
    public func integerItem() -> Int { Int(value("item", self, ctorch_item_int64)) }

    /// All elements in row-major order, converted to `Scalar`'s type.
    public func scalars<Scalar: TensorScalar>(as type: Scalar.Type = Scalar.self) -> [Scalar] {
        let source = detached().to(Scalar.dtype).to(.cpu).contiguous()
        return source.withBytes { Array($0.bindMemory(to: Scalar.self)) }
    }

    /// Calls `body` with the elements' memory: row-major, on the CPU (a copy is made of what is not).
    public func withBytes<Result>(_ body: (UnsafeRawBufferPointer) throws -> Result) rethrows -> Result {
        let source = to(.cpu).contiguous()
        let start = value("data", source, ctorch_data)
        return try withExtendedLifetime(source.handle) {
            try body(UnsafeRawBufferPointer(start: start, count: source.count * source.dtype.size))
        }
    }
}

// MARK: - Types and places

extension Tensor {
    /// The elements converted; the tensor itself when it has the type already. Gradients flow through.
    public func to(_ dtype: DType) -> Tensor {
        if dtype == self.dtype { return self }
        let device = device
        return call("to", self) { ctorch_to($0, options(dtype, device), $1) }
    }

    /// The elements moved; the tensor itself when it is there already. Gradients flow through.
    public func to(_ device: Device) -> Tensor {
        if device == self.device { return self }
        let dtype = dtype
        return call("to", self) { ctorch_to($0, options(dtype, device), $1) }
    }

    /// A copy with memory of its own.
    public func cloned() -> Tensor { call("clone", self, ctorch_clone) }

    /// The same elements, row by row in memory; itself if they already are.
    public func contiguous() -> Tensor { isContiguous ? self : call("contiguous", self, ctorch_contiguous) }
}
