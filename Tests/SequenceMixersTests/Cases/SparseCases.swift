import SequenceMixers

extension MixerCase {
    static func sparse(_ causal: Bool) -> [MixerCase] {
        // Where only distances count, padding on the left moves nothing. The relay, the last block and what is drawn for a
        // number of blocks depend on the length.
        func make(
            _ note: String, _ paddings: Set<Padding>, streams: Bool = false, grows: Bool = false,
            fixedLength: Int? = nil,
            _ options: SparseOptions
        ) -> MixerCase {
            MixerCase(
                mixer: "sparse", note: note, isCausal: causal, options: { options },
                streams: causal && (streams || grows),
                paddings: paddings, fixedLength: fixedLength, hasConstantState: grows ? false : nil)
        }
        let random = SparsePattern.random(block: 3, .drawn(count: 2))
        return [
            make("", [.right], streams: true, SparseOptions()),
            make("window dilated", [.right, .left], streams: true, SparseOptions(.window(radius: 3, dilation: 2))),
            make("longformer", [.right], streams: true, SparseOptions(.longformer(radius: 4, tokens: [0, 9]))),
            make(
                "windows and blocks by heads", [.right], streams: true,
                SparseOptions(.window(radius: 2), SparsePattern(.block(5)), headsMode: .multihead)),
            make("strided", [.right, .left], grows: true, SparseOptions(.strided(5))),
            make("fixed", [.right], grows: true, SparseOptions(.fixed(block: 6, columns: 2))),
            make(
                "fixed by heads", [.right], grows: true,
                SparseOptions(
                    SparsePattern(.block(5)), SparsePattern(.columns(size: 5, count: 1)), headsMode: .multihead)),
            make(
                "by layers", [.right, .left], streams: true,
                SparseOptions(.window(radius: 2), SparsePattern(.stride(3)), headsMode: .sequential)),
            make("star", [], SparseOptions(.star(relay: -1, ring: 2))),
            make("bigbird", [], SparseOptions(.bigBird(block: 4, random: .drawn(count: 2)))),
            make("random and dilated", causal ? [.right] : [], SparseOptions(random, .window(radius: 1, dilation: 7))),
            make(
                "custom", [], fixedLength: 6,
                SparseOptions(.custom(picture: ["#....#", "##....", "#.#..#", ".#.#..", "......", "###.##"]))),
        ]
    }
}
