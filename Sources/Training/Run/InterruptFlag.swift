import Foundation

/// Notes Ctrl-C and `kill`, so that training can save and end in order. A second one ends the process at once, with
/// exit code 128 plus the signal's number.
///
/// ```swift
/// let interrupt = InterruptFlag()
/// while step < steps, interrupt.receivedSignal == nil { … }
/// ```
///
/// Signals are noted while the flag lives; what they did before comes back after it. Only one flag may live at a time.
public final class InterruptFlag: Sendable {
    private let signals: [Int32]

    /// Begins to note the signals.
    public convenience init() {
        self.init(signals: [SIGINT, SIGTERM])
    }

    init(signals: [Int32]) {
        self.signals = signals
        receivedNumber.pointee = 0
        // Signals that the starting process had blocked are blocked here too, and would never come.
        var mask = sigset_t()
        sigemptyset(&mask)
        for number in signals {
            signal(number, note)
            sigaddset(&mask, number)
        }
        pthread_sigmask(SIG_UNBLOCK, &mask, nil)
    }

    deinit {
        for number in signals { signal(number, SIG_DFL) }
    }

    /// The first signal that came, or `nil`.
    public var receivedSignal: Int32? {
        receivedNumber.pointee == 0 ? nil : receivedNumber.pointee
    }
}

/// The one thing that a signal handler may write. Touched by `InterruptFlag.init` before any handler is there, so that
/// the handler does not allocate it.
nonisolated(unsafe) private let receivedNumber = {
    let pointer = UnsafeMutablePointer<sig_atomic_t>.allocate(capacity: 1)
    pointer.initialize(to: 0)
    return pointer
}()

/// Runs inside the signal: no memory is allocated and no lock is taken here.
private func note(_ number: Int32) {
    if receivedNumber.pointee != 0 { _exit(128 + number) }
    receivedNumber.pointee = number
}
