import Foundation

/// How far a training run is.
public struct ProgressStatus: Equatable, Sendable {
    public var step: Int
    public var total: Int
    public var loss: Double
    /// What the loss counts: `bits/byte`, or empty for a loss without unit.
    public var unit: String
    public var tokensPerSecond: Double
    public var secondsLeft: Double

    public init(
        step: Int, total: Int, loss: Double, unit: String = "", tokensPerSecond: Double, secondsLeft: Double
    ) {
        self.step = step
        self.total = total
        self.loss = loss
        self.unit = unit
        self.tokensPerSecond = tokensPerSecond
        self.secondsLeft = secondsLeft
    }
}

/// Where progress is written.
public protocol ProgressOutput {
    /// The columns of the terminal, or `nil` where the output is none.
    var width: Int? { get }
    func write(_ text: String)
}

/// Standard error; progress must never mix with the results on standard output.
public struct StandardErrorOutput: ProgressOutput {
    public init() {}

    public var width: Int? {
        guard isatty(STDERR_FILENO) == 1, ProcessInfo.processInfo.environment["TERM"] != "dumb" else { return nil }
        var size = winsize()
        guard ioctl(STDERR_FILENO, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0 else { return 80 }
        return Int(size.ws_col)
    }

    public func write(_ text: String) {
        // Written without a buffer, and not at all where nobody reads any more: a closed pipe must not end training.
        var rest = Array(text.utf8)[...]
        while !rest.isEmpty {
            let written = rest.withUnsafeBytes { Foundation.write(STDERR_FILENO, $0.baseAddress, $0.count) }
            guard written > 0 || errno == EINTR else { return }
            rest = rest.dropFirst(max(0, written))
        }
    }
}

/// Shows progress: one live line on a terminal, plain lines elsewhere.
public struct ProgressReporter {
    private let output: any ProgressOutput
    private let interval: Int
    private let now: () -> Double
    private var live = ""
    private var lastDrawn = -Double.infinity

    /// - Parameter interval: steps between plain lines, where the output is no terminal.
    public init(every interval: Int, to output: any ProgressOutput = StandardErrorOutput()) {
        self.init(every: interval, to: output, now: { ProcessInfo.processInfo.systemUptime })
    }

    init(every interval: Int, to output: any ProgressOutput, now: @escaping () -> Double) {
        precondition(interval >= 1, "progress is written every 1 or more steps, not \(interval)")
        self.output = output
        self.interval = interval
        self.now = now
    }

    /// Shows the status; cheap enough for each step.
    public mutating func update(_ status: ProgressStatus) {
        guard let width = output.width else {
            if status.step % interval == 0 || status.step == status.total { output.write(Self.plain(status) + "\n") }
            return
        }
        // Ten times a second is as fast as anybody reads.
        guard now() - lastDrawn >= 0.1 || status.step == status.total else { return }
        lastDrawn = now()
        live = Self.line(status, width: width - 1)
        output.write("\r\(live)\u{1B}[K")
    }

    /// Writes a line of its own, above the live one.
    public mutating func message(_ text: String) {
        output.write(live.isEmpty ? "\(text)\n" : "\r\u{1B}[K\(text)\n\(live)")
    }

    /// Leaves the live line as it is and goes to the next.
    public mutating func finish() {
        if !live.isEmpty { output.write("\n") }
        live = ""
        lastDrawn = -.infinity
    }

    static func plain(_ status: ProgressStatus) -> String {
        "step \(status.step)/\(status.total)  " + parts(status).joined(separator: "  ")
    }

    /// The most informative line that fits: first the bar shrinks and goes, then the last parts go.
    static func line(_ status: ProgressStatus, width: Int) -> String {
        var parts = ["\(status.step)/\(status.total)"] + parts(status)
        let fraction = status.total > 0 ? min(1, max(0, Double(status.step) / Double(status.total))) : 1
        let text = parts.joined(separator: "  ")
        let barWidth = min(30, width - text.count - 4)
        if barWidth >= 5 {
            let filled = Int((fraction * Double(barWidth)).rounded(.down))
            let bar = String(repeating: "=", count: filled) + (filled < barWidth ? ">" : "")
            return "[\(bar.padding(toLength: barWidth, withPad: " ", startingAt: 0))]  \(text)"
        }
        while parts.count > 1, parts.joined(separator: "  ").count > width { parts.removeLast() }
        return String(parts.joined(separator: "  ").prefix(max(0, width)))
    }

    private static func parts(_ status: ProgressStatus) -> [String] {
        let loss = status.loss.isFinite ? String(format: "%.4f", status.loss) : "\(status.loss)"
        return [
            status.unit.isEmpty ? "loss \(loss)" : "\(loss) \(status.unit)",
            "\(HumanFormat.short(status.tokensPerSecond)) tokens/s",
            "\(HumanFormat.duration(status.secondsLeft)) left",
        ]
    }
}

/// Tokens per second and time left, smoothed over the last seconds, so that a slow first step is soon forgotten.
public struct RateMeter: Sendable {
    /// After this many seconds a measurement counts by 1/e.
    private let memory = 20.0
    private var seconds = 0.0
    private var tokens = 0.0
    private var steps = 0.0

    public init() {}

    /// Counts one step that took `seconds` for `tokens` tokens.
    public mutating func add(tokens newTokens: Int, seconds newSeconds: Double) {
        let decay = exp(-max(0, newSeconds) / memory)
        seconds = seconds * decay + max(0, newSeconds)
        tokens = tokens * decay + Double(newTokens)
        steps = steps * decay + 1
    }

    /// 0 before the first step.
    public var tokensPerSecond: Double { seconds > 0 ? tokens / seconds : 0 }

    /// Infinite before the first step.
    public func secondsLeft(steps remaining: Int) -> Double {
        steps > 0 ? Double(max(0, remaining)) * seconds / steps : .infinity
    }
}
