import Foundation

/// Time and memory over the length, on logarithmic axes, as an SVG picture: two panels, and under each its legend with the
/// fitted exponents.
public struct CostPlot {
    public let title: String
    /// Under the title: what was measured.
    public let subtitle: String
    /// Of the vertical axis of times, with its unit.
    public let timeLabel: String
    public let series: [BenchmarkSeries]

    public init(title: String, subtitle: String, timeLabel: String, series: [BenchmarkSeries]) {
        self.title = title
        self.subtitle = subtitle
        self.timeLabel = timeLabel
        self.series = series
    }

    /// Told apart by all readers (Okabe and Ito).
    private static let colors = [
        "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444", "#a08b00",
    ]
    private static let (panelWidth, panelTop, panelHeight) = (460.0, 70.0, 300.0)

    public var svg: String {
        let height = Int(Self.panelTop + Self.panelHeight + 62 + 19 * Double(series.count))
        let curves = [
            Panel(
                label: timeLabel, points: series.map(\.times), exponents: series.map(\.timeExponent), left: 0),
            Panel(
                label: "peak memory beyond an idle process, MB", points: series.map(\.memories),
                exponents: series.map(\.memoryExponent), left: Self.panelWidth),
        ]
        let lines =
            [
                ##"<svg xmlns="http://www.w3.org/2000/svg" width="940" height="\##(height)" "##
                    + ##"viewBox="0 0 940 \##(height)" font-family="sans-serif" font-size="12" fill="#222">"##,
                ##"<rect width="940" height="\##(height)" fill="white"/>"##,
                ##"<text x="20" y="26" font-size="16" font-weight="bold">\##(Self.escaped(title))</text>"##,
                ##"<text x="20" y="46" fill="#555">\##(Self.escaped(subtitle))</text>"##,
            ] + curves.flatMap(draw) + ["</svg>"]
        return lines.joined(separator: "\n") + "\n"
    }

    private struct Panel {
        let label: String
        let points: [[(x: Double, y: Double)]]
        let exponents: [Double?]
        let left: Double
    }

    private func draw(_ panel: Panel) -> [String] {
        let all = panel.points.joined()
        let (left, right) = (panel.left + 78, panel.left + Self.panelWidth - 12)
        let (top, bottom) = (Self.panelTop, Self.panelTop + Self.panelHeight)
        let x = LogAxis(around: series.flatMap(\.results).map { Double($0.length) }, from: left, to: right)
        let y = LogAxis(around: all.map(\.y), from: bottom, to: top)
        var lines = [
            line(left, top, left, bottom, "#222"), line(left, bottom, right, bottom, "#222"),
            text(panel.label, panel.left + 20, (top + bottom) / 2, turned: true),
            text("length N, tokens", (left + right) / 2, bottom + 38),
        ]
        for mark in x.marks(at: series.flatMap(\.results).map { Double($0.length) }) {
            lines.append(line(x.place(mark), top, x.place(mark), bottom, "#e4e4e4"))
            lines.append(text(LogAxis.text(mark), x.place(mark), bottom + 17))
        }
        for mark in y.marks() {
            lines.append(line(left, y.place(mark), right, y.place(mark), "#e4e4e4"))
            lines.append(text(LogAxis.text(mark), left - 6, y.place(mark) + 4, anchor: "end"))
        }
        for (index, points) in panel.points.enumerated() {
            lines += curve(points.map { (x.place($0.x), y.place($0.y)) }, index)
            lines += legend(index, panel.exponents[index], left, bottom + 62 + 19 * Double(index))
        }
        return lines
    }

    private func curve(_ places: [(x: Double, y: Double)], _ index: Int) -> [String] {
        let path = places.map { "\(number($0.x)),\(number($0.y))" }.joined(separator: " ")
        let dots = places.map {
            ##"<circle cx="\##(number($0.x))" cy="\##(number($0.y))" r="3" fill="\##(color(index))"/>"##
        }
        return [##"<polyline points="\##(path)" fill="none" \##(stroke(index))/>"##] + dots
    }

    private func legend(_ index: Int, _ exponent: Double?, _ x: Double, _ y: Double) -> [String] {
        let name = series[index].name + (series[index].isReference ? ", reference form" : "")
        let power =
            exponent.map { ##" ∝ N<tspan dy="-5" font-size="10">\##(String(format: "%.2f", $0))</tspan>"## }
            ?? ##"<tspan fill="#777">: too little to fit</tspan>"##
        return [
            ##"<path d="M \##(number(x)) \##(number(y - 4)) h 24" fill="none" \##(stroke(index))/>"##,
            ##"<circle cx="\##(number(x + 12))" cy="\##(number(y - 4))" r="3" fill="\##(color(index))"/>"##,
            ##"<text x="\##(number(x + 32))" y="\##(number(y))">\##(Self.escaped(name))\##(power)</text>"##,
        ]
    }

    // MARK: SVG

    /// Which mechanism a series is of, so that both forms of one get the same color.
    private func mechanism(_ index: Int) -> Int {
        series[..<index].count { $0.name != series[index].name && !$0.isReference }
    }

    private func color(_ index: Int) -> String { Self.colors[mechanism(index) % Self.colors.count] }

    /// The reference form is dashed; dotted are mechanisms from the second round of colors on.
    private func stroke(_ index: Int) -> String {
        let isNewRound = mechanism(index) >= Self.colors.count
        let pattern = series[index].isReference ? "7 4" : isNewRound ? "2 3" : nil
        let dashes = pattern.map { ##" stroke-dasharray="\##($0)""## } ?? ""
        return ##"stroke="\##(color(index))" stroke-width="1.8"\##(dashes)"##
    }

    private func number(_ value: Double) -> String { String(format: "%.1f", value) }

    private func line(_ x1: Double, _ y1: Double, _ x2: Double, _ y2: Double, _ color: String) -> String {
        ##"<line x1="\##(number(x1))" y1="\##(number(y1))" x2="\##(number(x2))" y2="\##(number(y2))" stroke="\##(color)"/>"##
    }

    private func text(_ text: String, _ x: Double, _ y: Double, anchor: String = "middle", turned: Bool = false)
        -> String
    {
        let place =
            turned
            ? ##"transform="translate(\##(number(x)) \##(number(y))) rotate(-90)""##
            : ##"x="\##(number(x))" y="\##(number(y))""##
        return ##"<text \##(place) text-anchor="\##(anchor)">\##(Self.escaped(text))</text>"##
    }

    private static func escaped(_ text: String) -> String {
        text.replacingOccurrences(of: "&", with: "&amp;").replacingOccurrences(of: "<", with: "&lt;")
            .replacingOccurrences(of: ">", with: "&gt;").replacingOccurrences(of: "\"", with: "&quot;")
    }
}
