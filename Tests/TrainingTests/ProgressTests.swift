import Foundation
import Testing

@testable import Training

struct ProgressTests {
    private final class Screen: ProgressOutput {
        var text = ""
        var width: Int?
        init(width: Int?) { self.width = width }
        func write(_ text: String) { self.text += text }
    }

    private func status(_ step: Int) -> ProgressStatus {
        ProgressStatus(
            step: step, total: 1000, loss: 2.31416, unit: "bits/byte", tokensPerSecond: 12_345, secondsLeft: 252)
    }

    @Test func plainLinesWhereThereIsNoTerminal() {
        let screen = Screen(width: nil)
        var reporter = ProgressReporter(every: 500, to: screen, now: { 0 })
        for step in 1...1000 { reporter.update(status(step)) }
        reporter.message("done")
        reporter.finish()
        #expect(
            screen.text == """
                step 500/1000  2.3142 bits/byte  12.3k tokens/s  4m 12s left
                step 1000/1000  2.3142 bits/byte  12.3k tokens/s  4m 12s left
                done

                """)
    }

    @Test func oneLiveLineOnATerminal() {
        let screen = Screen(width: 80)
        var time = 0.0
        var reporter = ProgressReporter(every: 1, to: screen, now: { time })
        for step in 1...100 {
            time += 0.001
            reporter.update(status(step))
        }
        #expect(screen.text.filter { $0 == "\r" }.count == 1)
        #expect(!screen.text.contains("\n"))
        time += 1
        reporter.update(status(500))
        #expect(
            screen.text.hasSuffix(
                "\r[==========>         ]  500/1000  2.3142 bits/byte  12.3k tokens/s  4m 12s left\u{1B}[K"))
        reporter.message("saved")
        #expect(screen.text.contains("\r\u{1B}[Ksaved\n[===="))
        reporter.finish()
        #expect(screen.text.hasSuffix("\n"))
    }

    @Test func lineFitsEveryWidth() {
        for width in 0...200 {
            for step in [0, 1, 999, 1000, 2000] {
                let line = ProgressReporter.line(status(step), width: width)
                #expect(line.count <= width)
                if width >= 9 { #expect(line.contains("\(step)/1000")) }
            }
        }
    }

    @Test(
        arguments: [
            (0, "0"), (950, "950"), (999.4, "999"), (999.5, "1.00k"), (12_345, "12.3k"), (99_950, "100k"),
            (1.5, "1.50"),
            (4_567_890, "4.57M"), (-2_000, "-2.00k"), (1e18, "1000000T"), (.nan, "nan"), (9.996, "10.0"),
        ] as [(Double, String)])
    func shortNumbers(value: Double, text: String) {
        #expect(HumanFormat.short(value) == text)
    }

    @Test func countsAreGrouped() {
        #expect(
            [0, 12, 123, 1234, 1_234_567, -1000].map(HumanFormat.count) == [
                "0", "12", "123", "1,234", "1,234,567", "-1,000",
            ])
        #expect(HumanFormat.count(.min) == "-9,223,372,036,854,775,808")
    }

    @Test(
        arguments: [
            (0, "0s"), (45.4, "45s"), (59.7, "1m 00s"), (252, "4m 12s"), (3725, "1h 02m"), (273_600, "3d 04h"),
            (-5, "0s"),
            (.infinity, "?"), (.nan, "?"), (1e300, "?"),
        ] as [(Double, String)])
    func durations(seconds: Double, text: String) {
        #expect(HumanFormat.duration(seconds) == text)
    }

    @Test func theRateForgetsASlowStart() {
        var meter = RateMeter()
        #expect(meter.tokensPerSecond == 0 && meter.secondsLeft(steps: 5) == .infinity)
        meter.add(tokens: 100, seconds: 10)
        #expect(abs(meter.tokensPerSecond - 10) < 1e-9)
        for _ in 0..<200 { meter.add(tokens: 100, seconds: 1) }
        #expect(abs(meter.tokensPerSecond - 100) < 0.5)
        #expect(abs(meter.secondsLeft(steps: 60) - 60) < 0.5)
    }
}
