-- the 50 images most worth looking at: failed parts, broken order, boxes far from the usual place
with usual as (
    select label_run, dataset, part,
        median((x_min + x_max) / 2 / width) as centre_x, median((y_min + y_max) / 2 / height) as centre_y,
        median((x_max - x_min) / width) as width_share, median((y_max - y_min) / height) as height_share
    from labels where status = 'ok' group by label_run, dataset, part
), judged as (
    select labels.*,
        case when status = 'ok' then
            abs((x_min + x_max) / 2 / width - centre_x) + abs((y_min + y_max) / 2 / height - centre_y)
            + abs((x_max - x_min) / width - width_share) + abs((y_max - y_min) / height - height_share)
        end as distance
    from labels left join usual using (label_run, dataset, part)
)
select label_run, dataset, path, any_value(image_id) as image_id,
    count(*) filter (status not in ('ok', 'absent')) as failed_parts,
    count(*) filter (status = 'absent') as absent_parts,
    bool_or(list_contains(flags, 'order')) as order_broken,
    round(max(distance), 3) as distance_from_usual,
    string_agg(part || ': ' || status, ', ' order by part) filter (status <> 'ok') as what
from judged
where status <> 'unreadable'
group by label_run, dataset, path
order by failed_parts desc, order_broken desc, distance_from_usual desc nulls last, path
limit 50
