import Foundation

extension Tensor: CustomStringConvertible {
    /// Shape, type and numbers; of a long dimension, its ends only.
    public var description: String {
        let head =
            "Tensor(\(shape), \(dtype)\(device == .cpu ? "" : ", \(device)")\(requiresGrad ? ", requiresGrad" : ""))"
        if count == 0 { return head }
        let shown = TensorPrinter(self)
        return rank == 0 ? "\(head) \(shown.text)" : "\(head)\n\(shown.text)"
    }
}

/// Prints numbers in columns of one width, six at each end of a dimension that has more than sixteen.
private struct TensorPrinter {
    private let edge = 6
    private let limit = 16
    private var values: [Double]
    private let shape: [Int]
    private let integral: Bool
    private let isBool: Bool

    init(_ tensor: Tensor) {
        let real = tensor.dtype == .complex64 || tensor.dtype == .complex128 ? tensor.complexAsReal() : tensor
        values = real.scalars(as: Double.self)
        shape = real.shape
        isBool = tensor.dtype == .bool
        integral = !real.dtype.isFloatingPoint
    }

    var text: String {
        guard !shape.isEmpty else { return format(values[0]) }
        let width = shownOffsets(0, 0).map { format(values[$0]).count }.max() ?? 1
        return block(0, 0, indent: 1, width: width)
    }

    private func format(_ value: Double) -> String {
        if isBool { return value == 0 ? "false" : "true" }
        if integral { return String(format: "%.0f", value) }
        let magnitude = abs(value)
        return magnitude != 0 && (magnitude < 1e-3 || magnitude >= 1e5)
            ? String(format: "%.4e", value) : String(format: "%.4f", value)
    }

    private func positions(_ dim: Int) -> [Int] {
        let size = shape[dim]
        return size <= limit ? Array(0..<size) : Array(0..<edge) + Array(size - edge..<size)
    }

    private func stride(_ dim: Int) -> Int { shape[(dim + 1)...].reduce(1, *) }

    private func shownOffsets(_ dim: Int, _ offset: Int) -> [Int] {
        dim == shape.count ? [offset] : positions(dim).flatMap { shownOffsets(dim + 1, offset + $0 * stride(dim)) }
    }

    private func block(_ dim: Int, _ offset: Int, indent: Int, width: Int) -> String {
        let cut = shape[dim] > limit
        let last = dim == shape.count - 1
        var parts = positions(dim).map { position in
            let start = offset + position * stride(dim)
            if !last { return block(dim + 1, start, indent: indent + 1, width: width) }
            let text = format(values[start])
            return String(repeating: " ", count: max(0, width - text.count)) + text
        }
        if cut { parts.insert("…", at: edge) }
        let gap =
            last ? ", " : String(repeating: "\n", count: shape.count - 1 - dim) + String(repeating: " ", count: indent)
        return "[" + parts.joined(separator: last ? gap : "," + gap) + "]"
    }
}
