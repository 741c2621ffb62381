// The panel's words in the front-end's language. English words are the keys.

const WORDS = {
  ja: {
    "The reenacted picture": "再演された画像", "Camera or file": "カメラまたはファイル", "Video file": "動画ファイル", Camera: "カメラ",
    Start: "開始", Stop: "停止", Neutral: "ニュートラル", Record: "録画", "End recording": "録画を終える", "No face": "顔なし",
    recorded: "録画", dropped: "ドロップ", "From now on motion counts from how you look now": "今の顔を基準にして、以後の動きを数えます",
    "Waiting until the run comes to this node …": "実行がこのノードに来るのを待っています…",
    "Choose a video file first.": "先に動画ファイルを選んでください。",
    "Browsers give cameras to pages of https or localhost only.":
      "ブラウザーは https または localhost のページにしかカメラを渡しません。",
    "It cannot be opened:": "開けません:",
  },
  zh: {
    "The reenacted picture": "重演的画面", "Camera or file": "摄像头或文件", "Video file": "视频文件", Camera: "摄像头",
    Start: "开始", Stop: "停止", Neutral: "中性", Record: "录制", "End recording": "结束录制", "No face": "没有人脸",
    recorded: "已录制", dropped: "丢弃", "From now on motion counts from how you look now": "从现在起,以您此刻的样子为基准计算动作",
    "Waiting until the run comes to this node …": "正在等待运行到此节点…",
    "Choose a video file first.": "请先选择视频文件。",
    "Browsers give cameras to pages of https or localhost only.": "浏览器只向 https 或 localhost 的页面提供摄像头。",
    "It cannot be opened:": "无法打开:",
  },
};

// Words in a language such as "zh-TW"; English where there are none.
export function translator(locale) {
  const words = WORDS[String(locale ?? "").split("-")[0]] ?? {};
  return (word) => words[word] ?? word;
}
