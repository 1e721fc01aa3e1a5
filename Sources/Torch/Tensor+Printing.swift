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
    private static let edge = 6
    private static let limit = 16
    /// The shown numbers in row-major order, and how many of each dimension are shown.
    private let texts: [String]
    private let shown: [Int]
    private let isCut: [Bool]

    init(_ tensor: Tensor) {
        let source = tensor.detached()
        var part = source.dtype == .complex64 || source.dtype == .complex128 ? source.complexAsReal() : source
        isCut = part.shape.map { $0 > Self.limit }
        for (dim, size) in part.shape.enumerated() where size > Self.limit {
            part = concatenate([part.sliced(dim, 0..<Self.edge), part.sliced(dim, size - Self.edge..<size)], dim: dim)
        }
        shown = part.shape
        texts =
            switch part.dtype {
            case .bool: part.scalars(as: Bool.self).map { "\($0)" }
            case let type where type.isFloatingPoint: part.scalars(as: Double.self).map(Self.format)
            default: part.scalars(as: Int.self).map { "\($0)" }
            }
    }

    var text: String {
        guard !shown.isEmpty else { return texts[0] }
        return block(0, texts[...], indent: 1, width: texts.map(\.count).max() ?? 1)
    }

    private static func format(_ value: Double) -> String {
        let magnitude = abs(value)
        return magnitude != 0 && (magnitude < 1e-3 || magnitude >= 1e5)
            ? String(format: "%.4e", value) : String(format: "%.4f", value)
    }

    private func block(_ dim: Int, _ part: ArraySlice<String>, indent: Int, width: Int) -> String {
        let size = part.count / shown[dim]
        let last = dim == shown.count - 1
        var parts = (0..<shown[dim]).map { position in
            let start = part.startIndex + position * size
            if !last { return block(dim + 1, part[start..<start + size], indent: indent + 1, width: width) }
            return String(repeating: " ", count: max(0, width - part[start].count)) + part[start]
        }
        if isCut[dim] { parts.insert("…", at: Self.edge) }
        let breaks = String(repeating: "\n", count: shown.count - 1 - dim) + String(repeating: " ", count: indent)
        return "[" + parts.joined(separator: last ? ", " : "," + breaks) + "]"
    }
}
