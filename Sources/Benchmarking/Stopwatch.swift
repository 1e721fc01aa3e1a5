/// Runs work untimed, then `repeats` times timed; times in milliseconds.
struct Stopwatch {
    let median: Double
    let minimum: Double
    let mean: Double
    let peakMegabytes: Double

    init(repeats: Int, warmUp: Int = 2, _ work: () -> Void) {
        for _ in 0..<warmUp { work() }
        ProcessMemory.resetPeak()
        let times = (0..<repeats).map { _ in Self.milliseconds(work) }.sorted()
        minimum = times[0]
        mean = times.reduce(0, +) / Double(times.count)
        median =
            times.count.isMultiple(of: 2)
            ? (times[times.count / 2 - 1] + times[times.count / 2]) / 2 : times[times.count / 2]
        peakMegabytes = ProcessMemory.peakMegabytes
    }

    static func milliseconds(_ work: () throws -> Void) rethrows -> Double {
        let start = ContinuousClock.now
        try work()
        let time = (ContinuousClock.now - start).components
        return Double(time.seconds) * 1e3 + Double(time.attoseconds) * 1e-15
    }
}
