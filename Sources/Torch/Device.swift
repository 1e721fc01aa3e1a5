import CTorch

/// Where a tensor lives.
public enum Device: Hashable, Sendable {
    case cpu
    case cuda(Int)
    case mps

    /// Reads `cpu`, `cuda`, `cuda:1` or `mps`.
    ///
    /// - Throws: ``TorchError`` when the name is none of these, or when this machine has no such device.
    public init(named name: String) throws {
        switch name.split(separator: ":", omittingEmptySubsequences: false).map(String.init) {
        case ["cpu"]: self = .cpu
        case ["mps"]: self = .mps
        case ["cuda"]: self = .cuda(0)
        case let parts where parts.count == 2 && parts[0] == "cuda":
            guard let index = Int(parts[1]), (0..<64).contains(index) else { fallthrough }
            self = .cuda(index)
        default:
            throw TorchError(
                .invalidArgument, in: "device", "unknown device '\(name)'; expected cpu, cuda, cuda:N or mps")
        }
        guard isAvailable else {
            throw TorchError(.notSupported, in: "device", "device '\(name)' is not available on this machine; use cpu")
        }
    }

    /// Whether this machine and this LibTorch can compute on the device.
    public var isAvailable: Bool {
        switch self {
        case .cpu: true
        case .cuda: ctorch_has_cuda()
        case .mps: ctorch_has_mps()
        }
    }

    /// LibTorch's number of the kind of device, and which one of it (-1: the current one).
    var code: (type: Int32, index: Int32) {
        switch self {
        case .cpu: (0, -1)
        case .cuda(let index): (1, Int32(index))
        case .mps: (13, -1)
        }
    }

    init(type: Int32, index: Int32) {
        switch type {
        case 1: self = .cuda(max(0, Int(index)))
        case 13: self = .mps
        default: self = .cpu
        }
    }
}

extension Device: CustomStringConvertible {
    public var description: String {
        switch self {
        case .cpu: "cpu"
        case .cuda(let index): "cuda:\(index)"
        case .mps: "mps"
        }
    }
}
