import Foundation

/// Numbers and durations as people read them.
public enum HumanFormat {
    /// `1234567` as `1,234,567`.
    public static func count(_ value: Int) -> String {
        let digits = Array("\(value.magnitude)")
        let grouped = digits.enumerated().map { index, digit in
            index > 0 && (digits.count - index) % 3 == 0 ? ",\(digit)" : "\(digit)"
        }
        return (value < 0 ? "-" : "") + grouped.joined()
    }

    /// Three significant digits and a unit: `950`, `12.3k`, `4.57M`.
    public static func short(_ value: Double) -> String {
        guard value.isFinite else { return "\(value)" }
        var scaled = value.magnitude
        var unit = ""
        for next in ["k", "M", "G", "T"] where scaled >= 999.5 {
            scaled /= 1000
            unit = next
        }
        let decimals = unit.isEmpty && scaled == scaled.rounded() || scaled >= 99.95 ? 0 : scaled >= 9.995 ? 1 : 2
        return (value < 0 ? "-" : "") + String(format: "%.\(decimals)f", scaled) + unit
    }

    /// The two largest units: `45s`, `4m 12s`, `1h 02m`, `3d 04h`.
    public static func duration(_ seconds: Double) -> String {
        guard seconds.isFinite, seconds < 1e9 else { return "?" }
        let whole = Int(max(0, seconds).rounded())
        let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60)
        if days > 0 { return String(format: "%dd %02dh", days, hours) }
        if hours > 0 { return String(format: "%dh %02dm", hours, minutes) }
        if minutes > 0 { return String(format: "%dm %02ds", minutes, whole % 60) }
        return "\(whole)s"
    }
}
