import Foundation

/// What the system says of this process's memory.
public enum ProcessMemory {
    /// Resident now, in units of 10⁶ bytes; 0 where the system does not tell.
    public static var residentMegabytes: Double { field("VmRSS:") }

    /// The most that was resident since the process began, or since ``resetPeak()``.
    public static var peakMegabytes: Double { field("VmHWM:") }

    /// Starts the peak anew (Linux only).
    public static func resetPeak() {
        try? Data("5".utf8).write(to: URL(fileURLWithPath: "/proc/self/clear_refs"))
    }

    private static func field(_ name: String) -> Double {
        guard let status = try? String(contentsOfFile: "/proc/self/status", encoding: .utf8) else { return 0 }
        let line = status.split(separator: "\n").first { $0.hasPrefix(name) }
        let kibibytes = line?.split(whereSeparator: \.isWhitespace).dropFirst().first.flatMap { Double($0) } ?? 0
        return kibibytes * 1024 / 1e6
    }
}
