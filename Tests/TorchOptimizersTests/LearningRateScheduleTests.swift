import Foundation
import Testing
import TorchOptimizers

@Suite struct LearningRateScheduleTests {
    private static let goldenCases: [(String, LearningRateSchedule)] = [
        ("cosine", .cosine(steps: 14, finalFraction: 0.1)),
        ("cosine-warm", .cosine(steps: 14, finalFraction: 0.1, warmupSteps: 4)),
        ("linear", .linear(steps: 12, finalFraction: 0.2)),
        ("linear-warm", .linear(steps: 12, finalFraction: 0.2, warmupSteps: 4)),
        ("step", .step(every: 3, factor: 0.5)),
        ("step-warm", .step(every: 3, factor: 0.5, warmupSteps: 4)),
        ("constant-warm", .constant(warmupSteps: 4)),
    ]

    @Test(arguments: goldenCases)
    func factorsAreThoseOfPyTorch(_ name: String, _ schedule: LearningRateSchedule) throws {
        let expected = try #require(try Golden.load().schedules[name])
        #expect(expected.count == 14)
        for (step, factor) in expected.enumerated() {
            #expect(abs(schedule(step: step) - factor) < 1e-12, "step \(step)")
        }
    }

    @Test func inverseSquareRootFallsFromTheEndOfTheWarmup() {
        let schedule = LearningRateSchedule.inverseSquareRoot(warmupSteps: 100)
        #expect(schedule(step: 49) == 0.5)
        #expect(schedule(step: 99) == 1)
        #expect(schedule(step: 399) == 0.5)
        #expect(LearningRateSchedule.inverseSquareRoot()(step: 0) == 1)
        #expect(LearningRateSchedule.inverseSquareRoot()(step: 24) == 0.2)
    }

    /// Each round is a cosine of its own, and the first step of the next is one of full rate.
    @Test func restartsBeginAnew() {
        let schedule = LearningRateSchedule.cosineRestarts(every: 8, finalFraction: 0.1, warmupSteps: 2)
        let round = LearningRateSchedule.cosine(steps: 8, finalFraction: 0.1)
        #expect(schedule(step: 0) == 0.5)
        for step in 0..<40 { #expect(abs(schedule(step: 2 + step) - round(step: step % 8)) < 1e-15, "\(step)") }
    }

    @Test func theEndIsKept() {
        #expect(LearningRateSchedule.cosine(steps: 10, finalFraction: 0.25)(step: 1000) == 0.25)
        #expect(abs(LearningRateSchedule.linear(steps: 10, finalFraction: 0.25)(step: 10) - 0.25) < 1e-15)
        #expect(LearningRateSchedule.cosine(steps: 5, warmupSteps: 5)(step: 4) == 1)
        #expect(LearningRateSchedule.cosine(steps: 5, warmupSteps: 9)(step: 4) == 5.0 / 9)
    }

    @Test func factorsLieBetweenZeroAndOneAndFallAfterTheWarmup() {
        var random = SystemRandomNumberGenerator()
        for _ in 0..<50 {
            let warmup = Int.random(in: 0...20, using: &random)
            let steps = Int.random(in: 1...60, using: &random)
            let final = Double.random(in: 0...1, using: &random)
            let schedules: [LearningRateSchedule] = [
                .constant(warmupSteps: warmup), .cosine(steps: steps, finalFraction: final, warmupSteps: warmup),
                .linear(steps: steps, finalFraction: final, warmupSteps: warmup),
                .inverseSquareRoot(warmupSteps: warmup),
                .step(every: steps, factor: final, warmupSteps: warmup),
            ]
            for schedule in schedules {
                let factors = (0..<100).map { schedule(step: $0) }
                #expect(factors.allSatisfy { (0...1).contains($0) }, "\(schedule)")
                #expect(zip(factors, factors.dropFirst()).prefix(max(0, warmup - 1)).allSatisfy(<), "\(schedule)")
                #expect(zip(factors, factors.dropFirst()).dropFirst(warmup).allSatisfy(>=), "\(schedule)")
            }
        }
    }

    @Test func isWrittenAsOneMapping() throws {
        let others: [(String, LearningRateSchedule)] = [
            ("", .inverseSquareRoot(warmupSteps: 7)),
            ("", .cosineRestarts(every: 5, finalFraction: 0.2, warmupSteps: 3)),
        ]
        for (_, schedule) in Self.goldenCases + others {
            let data = try JSONEncoder().encode(schedule)
            #expect(try JSONDecoder().decode(LearningRateSchedule.self, from: data) == schedule)
        }
        func decoded(_ text: String) throws -> LearningRateSchedule {
            try JSONDecoder().decode(LearningRateSchedule.self, from: Data(text.utf8))
        }
        #expect(try decoded(#"{"name": "inverse-square-root"}"#) == .inverseSquareRoot())
        #expect(try decoded(#"{"name": "step", "every": 5}"#) == .step(every: 5))
        let refused = [
            #"{"name": "exponential"}"#, #"{"name": "cosine"}"#, #"{"name": "cosine", "steps": 0}"#,
            #"{"name": "linear", "steps": 5, "finalFraction": 2}"#, #"{"name": "constant", "warmupSteps": -1}"#,
            #"{"name": "step", "every": 0}"#, #"{"name": "cosine-restarts", "every": 0}"#,
            #"{"name": "cosine-restarts"}"#, #"{"name": "step", "every": 2, "factor": -1}"#, "{}",
        ]
        for text in refused {
            #expect(throws: DecodingError.self, "\(text) was accepted") { try decoded(text) }
        }
        #expect(
            LearningRateSchedule.Name.allCases.map(\.rawValue).sorted() == [
                "constant", "cosine", "cosine-restarts", "inverse-square-root", "linear", "step",
            ])
    }

    @Test func impossibleValuesAreRefused() {
        #expect(
            misuse { _ = LearningRateSchedule.cosine(steps: 0)(step: 0) }
                == "LearningRateSchedule: expected steps of at least 1, got 0")
        #expect(
            misuse { _ = LearningRateSchedule.constant()(step: -1) }
                == "LearningRateSchedule: expected a step of at least 0, got -1")
    }
}
