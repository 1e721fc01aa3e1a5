import Testing
import Torch

@Suite struct ReplayTests {
    private let generator = RandomGenerator(seed: 1)

    private func draw() -> Tensor { .random([4], using: generator) }

    @Test func randomNumbersAreRepeated() {
        let replay = Replay(generator)
        let first = replay { draw() }
        let state = generator.state
        for _ in 0..<2 {
            #expect(replay { draw() }.isIdentical(to: first))
            #expect(generator.state.isIdentical(to: state), "the stream goes on as if nothing had been drawn")
        }
        #expect(!draw().isIdentical(to: first))
    }

    /// A choice draws only the first time; what is drawn after it stays the same.
    @Test func choicesAreRepeated() {
        let replay = Replay(generator)
        var calls = 0
        func run() -> [Tensor] {
            replay {
                let before = draw()
                let choices = (0..<2).map { _ in
                    Replay.choice {
                        calls += 1
                        return draw()
                    }
                }
                return [before] + choices + [draw()]
            }
        }
        let first = run()
        for _ in 0..<2 {
            for (found, expected) in zip(run(), first) { #expect(found.isIdentical(to: expected)) }
        }
        #expect(calls == 2)
    }

    @Test func outsideOfAReplayAChoiceIsMade() {
        var calls = 0
        for _ in 0..<2 {
            _ = Replay.choice {
                calls += 1
                return draw()
            }
        }
        #expect(calls == 2)
    }

    /// A part that is built anew inside a whole that is repeated repeats the whole's choices.
    @Test func partsOfAWholeAreRepeatedWithIt() {
        let whole = Replay(generator)
        var calls = 0
        func run() -> Tensor {
            whole {
                let part = Replay(generator)
                let once = part { choose() }
                return stack([once, part { choose() }, Replay.choice { draw() }, draw()])
            }
        }
        func choose() -> Tensor {
            Replay.choice {
                calls += 1
                return draw()
            }
        }
        let first = run()
        #expect(first.selected(0, 0).isIdentical(to: first.selected(0, 1)))
        #expect(run().isIdentical(to: first))
        #expect(calls == 1)
    }

    @Test func aChoiceThatWasNotThereIsReported() throws {
        let replay = Replay(generator)
        replay {}
        let error = torchError { _ = replay { Replay.choice { draw() } } }
        #expect(error.message == "a choice that was not made when the computation ran first")
    }

    /// In a backward pass, which may run on another thread.
    @Test func recomputedLayersRepeatTheirChoices() {
        let x = normal([6]).requiringGrad()
        func run(_ recomputes: Bool) -> [Tensor] {
            generator.reseed(2)
            let replay = Replay(generator)
            let body = { (inputs: [Tensor]) -> [Tensor] in
                replay {
                    let kept = Replay.choice {
                        Tensor.bernoulli(like: x.detached(), probability: 0.5, using: generator)
                    }
                    return [inputs[0].square() * kept * Tensor.random([6], using: generator, dtype: .float64)]
                }
            }
            let y = recomputes ? checkpointed([x], body)[0] : body([x])[0]
            return [y] + gradients(of: [y.sum()], withRespectTo: [x]).compactMap { $0 }
        }
        for (found, expected) in zip(run(true), run(false)) { #expect(found.isIdentical(to: expected)) }
    }
}
